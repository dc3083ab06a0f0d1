"""Detects opens and clicks that were made automatically rather than by a person."""

from __future__ import annotations

import re
from collections.abc import Mapping

_PROXY = re.compile(
    r"GoogleImageProxy|YahooMailProxy|YahooCacheSystem|bot\b|crawl|spider|scan|preview|prefetch"
    r"|proofpoint|barracuda|mimecast|symantec|trendmicro|fireeye|sophos|ironport|forcepoint"
    r"|safelinks|urldefense|antivirus|monitor|headless|phantom|puppeteer|playwright"
    r"|curl|wget|python|java/|okhttp|go-http-client|libwww|axios|node-fetch|apache-httpclient",
    re.IGNORECASE,
)
_APPLE = re.compile(r"Mozilla/5\.0\s*")
"""The whole user agent of Apple's Mail Privacy Protection, whether or not a person is looking."""

_PREFETCH = ("Sec-Purpose", "Purpose", "X-Purpose", "X-Moz")


def is_machine(user_agent: str) -> bool:
    """Return whether a user agent names a proxy, a scanner or a script, or is empty."""
    name = user_agent.strip()
    return not name or _APPLE.fullmatch(name) is not None or _PROXY.search(name) is not None


def asks_ahead(method: str, headers: Mapping[str, str]) -> bool:
    """Return whether a request was made before a person looked, or without one."""
    purposes = " ".join(headers.get(name, "") for name in _PREFETCH).lower()
    return method != "GET" or "prefetch" in purposes or "preview" in purposes
