"""Detects opens and clicks that were made automatically rather than by a person.

The lists are kept here because those of general libraries are made for web pages: they count mail
programs, such as Outlook, among the crawlers, and know no scanners of mail.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_PROXIES = r"GoogleImageProxy|YahooMailProxy|YahooCacheSystem|imgproxy|image-?proxy"
"""What mailbox providers and chats load images through."""

_PREVIEWS = (
    r"facebookexternalhit|facebot|meta-externalagent|preview|prefetch|existence discovery"
    r"|protocol discovery|cryptoapi|embedly|iframely|-parser|-scrap|google-(safety|apps-script)"
    r"|^(WhatsApp|Viber|Rocket\.Chat|Mastodon)\b"
)
"""What shows a link in a chat or a document before anybody follows it. A program that begins with
its own name is the chat's server; in the chat's browser, that name comes after Mozilla's."""

_SCANNERS = (
    r"scan|proofpoint|barracuda|mimecast|symantec|trendmicro|fireeye|sophos|ironport|forcepoint"
    r"|safelinks|urldefense|url defense|antivirus|zgrab"
)
"""What examines mail before it is delivered."""

_ROBOTS = (
    r"https?://|bot(\b|_)|crawl|spider|slurp|fetcher|monitor|uptime|pingdom|statuscake|lighthouse"
    r"|chatgpt|headless|phantomjs|puppeteer|playwright|selenium"
)
"""Robots; most name the page that describes them."""

_LIBRARIES = (
    r"\b(curl|wget|python|aiohttp|httpx|java/|okhttp|go-http-client|libwww|axios|node-fetch|undici"
    r"|apache-httpclient|guzzle|faraday|http\.rb|httpie|postmanruntime)|^(ruby|php|dalvik)\b"
)

_MACHINE = re.compile(
    "|".join((_PROXIES, _PREVIEWS, _SCANNERS, _ROBOTS, _LIBRARIES)), re.IGNORECASE
)
_APPLE = re.compile(r"Mozilla/5\.0\s*")
"""The whole user agent of Apple's Mail Privacy Protection, whether or not a person is looking."""

_ANDROID = re.compile(r"\([^()]*Android[^()]*\)", re.IGNORECASE)
"""Where a device says what it is: phones are called CUBOT, M bot 60, PHANTOM or ScanPal."""

_LONGEST = 1_000
_PREFETCH = ("Sec-Purpose", "Purpose", "X-Purpose", "X-Moz")


def is_machine(user_agent: str) -> bool:
    """Return whether a user agent names a proxy, a scanner or a script, or is empty."""
    name = user_agent.strip()[:_LONGEST]
    if not name or _APPLE.fullmatch(name):
        return True
    if name.startswith("Mozilla/"):
        name = _ANDROID.sub("", name, count=1)
    return _MACHINE.search(name) is not None


def asks_ahead(method: str, headers: Mapping[str, str]) -> bool:
    """Return whether a request was made before a person looked, or without one."""
    purposes = " ".join(headers.get(name, "") for name in _PREFETCH).lower()
    return method != "GET" or "prefetch" in purposes or "preview" in purposes
