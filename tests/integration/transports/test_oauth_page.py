"""The settings on the page "Microsoft 365 and Google" send mail; a local authority gives tokens."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from devservers.authority import CLIENT_ID, CLIENT_SECRET, TENANT, TokenAuthority
from django_epica_mail.transports import oauth, token_providers

PAGE = Path(__file__).parents[3] / "docs" / "how-to" / "microsoft-365-and-google.md"
TOKENS: list[str] = []


def access_token() -> tuple[str, float]:
    """Stand in for the function that the page names."""
    return TOKENS[-1], 3600


def page_transports() -> dict[str, dict[str, Any]]:
    """Run the page's code, and return all transports that it configures."""
    text = PAGE.read_text("utf-8")
    found: dict[str, dict[str, Any]] = {}
    for block in re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        names: dict[str, Any] = {}
        exec(block, names)  # noqa: S102 - our own page
        found |= names["EPICA_MAIL"]["TRANSPORTS"]
    return found


@pytest.mark.parametrize("alias", ["microsoft", "google", "generic", "function"])
def test_each_transport_of_the_page_sends(
    alias: str,
    authority: TokenAuthority,
    mailbox: Any,
    use_options: Any,
    queue_mail: Any,
    deliver: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    account = tmp_path / "account.json"
    account.write_text(json.dumps(authority.service_account()))
    for prefix in ("MICROSOFT", "MAIL"):
        monkeypatch.setenv(f"{prefix}_CLIENT_ID", CLIENT_ID)
        monkeypatch.setenv(f"{prefix}_CLIENT_SECRET", CLIENT_SECRET)
    monkeypatch.setenv("MICROSOFT_TENANT", TENANT)
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT_FILE", str(account))
    monkeypatch.setattr(token_providers, "_MICROSOFT", authority.url)
    TOKENS.append(
        authority.grant({"grant_type": "client_credentials"}, (CLIENT_ID, CLIENT_SECRET))[1][
            "access_token"
        ]
    )
    options = page_transports()[alias]["OPTIONS"]
    assert options["use_tls" if options["port"] == 587 else "use_ssl"] is True
    oauth.require_encryption(options["host"], encrypted=True)
    if "token_url" in options["oauth"]:
        options["oauth"]["token_url"] = authority.token_url
    if "token" in options["oauth"]:
        options["oauth"]["token"] = f"{__name__}.access_token"
    local = {"host": "127.0.0.1", "port": mailbox.port, "use_tls": False, "use_ssl": False}
    use_options(**{**options, **local})
    queue_mail("to@example.org")
    deliver()
    assert [it.recipients for it in mailbox.accepted] == [("to@example.org",)]


def test_the_page_lists_exactly_the_keys() -> None:
    table = PAGE.read_text("utf-8").split("| key | of |")[1].split("\n\n")[0]
    listed = set(
        re.findall(r"`(\w+)`", re.sub(r"\|[^|]*\|[^|]*\|$", "", table, flags=re.MULTILINE))
    )
    keys = {key for ways in token_providers._FORMS.values() for way in ways for key in way}
    keys |= {key for optional in token_providers._OPTIONAL.values() for key in optional}
    assert listed == keys | {"provider", "mechanism"}


def test_the_page_knows_the_errors_that_are_advised_on() -> None:
    page = PAGE.read_text("utf-8")
    codes = {code for _, pattern, _ in oauth._ADVICE for code in re.findall(r"AADSTS\d+", pattern)}
    assert codes == set(re.findall(r"AADSTS\d+", page))
