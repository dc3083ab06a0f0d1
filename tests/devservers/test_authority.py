"""The token authority of the tests: what it issues, and to whom."""

from __future__ import annotations

import json
import ssl
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import pytest

from devservers.authority import CLIENT_ID, CLIENT_SECRET, TokenAuthority


def ask(authority: TokenAuthority, **form: str) -> tuple[int, Any]:
    trust = ssl.create_default_context(cafile=str(authority.certificate))
    request = Request(authority.token_url, urlencode(form).encode())
    try:
        with urlopen(request, context=trust) as answer:
            return answer.status, json.load(answer)
    except HTTPError as error:
        with error:
            return error.code, json.load(error)


@pytest.fixture
def authority(tmp_path: Path) -> Any:
    with TokenAuthority(tmp_path, "shop@example.com", lifetime=60) as running:
        yield running


def test_a_token_opens_one_mailbox_until_it_is_revoked(authority: TokenAuthority) -> None:
    client = {"client_id": CLIENT_ID, "client_secret": CLIENT_SECRET}
    status, answer = ask(authority, grant_type="client_credentials", **client)
    assert (status, answer["expires_in"]) == (200, 60)
    token = answer["access_token"]
    assert authority.accepts("shop@example.com", token)
    assert not authority.accepts("other@example.com", token)
    assert not authority.accepts("shop@example.com", token + "x")
    authority.revoke()
    assert not authority.accepts("shop@example.com", token)


@pytest.mark.parametrize(
    ("form", "error"),
    [
        ({"grant_type": "client_credentials"}, "invalid_client"),
        ({"grant_type": "password"}, "unsupported_grant_type"),
        ({"grant_type": "refresh_token", "refresh_token": "x"}, "invalid_grant"),
        (
            {"grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer", "assertion": "a.b.c"},
            "invalid_grant",
        ),
    ],
)
def test_who_has_no_right_to_a_token_gets_none(authority, form, error) -> None:
    if error != "invalid_client":
        form = {**form, "client_id": CLIENT_ID, "client_secret": CLIENT_SECRET}
    status, answer = ask(authority, **form)
    assert (status >= 400, answer["error"]) == (True, error)
    assert authority.issued == []


def test_a_fault_is_answered_once(authority: TokenAuthority) -> None:
    authority.fail(503, error="busy")
    assert ask(authority) == (503, {"error": "busy"})
    assert ask(authority)[1]["error"] == "invalid_client"
