"""Tokens from each provider, whose part a local authority plays."""

from __future__ import annotations

import json
import logging
import socket
import sys
from collections.abc import Mapping
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured

from devservers.authority import CLIENT_ID, CLIENT_SECRET, TENANT, TokenAuthority
from django_epica_mail.exceptions import MissingExtra, TokenRefused
from django_epica_mail.transports import connection, token_providers
from django_epica_mail.transports.oauth import Mailbox, TokenSource

MAILBOX = "shop@example.com"
BOX = Mailbox(MAILBOX, "smtp.example.com", 587)
MICROSOFT = {"provider": "microsoft", "tenant": TENANT, "client_id": CLIENT_ID}


def token(form: Mapping[str, Any]) -> str:
    return TokenSource(form, BOX).current(5).value


def way_to_a_token(name: str, authority: TokenAuthority, folder: Any) -> dict[str, Any]:
    """Return an option ``oauth`` whose provider is the authority."""
    microsoft = {**MICROSOFT, "authority": authority.url}
    client = {"client_id": CLIENT_ID, "client_secret": CLIENT_SECRET}
    refresh = {**client, "refresh_token": authority.refresh_token}
    if name == "google, a file":
        file = folder / "account.json"
        file.write_text(json.dumps(authority.service_account()))
        return {"provider": "google", "service_account": str(file)}
    return {
        "microsoft, credentials": {**microsoft, "client_secret": CLIENT_SECRET},
        "microsoft, refresh token": {**microsoft, **refresh},
        "google, a dict": {"provider": "google", "service_account": authority.service_account()},
        "google, refresh token": {
            "provider": "google",
            "token_url": authority.token_url,
            **refresh,
        },
        "generic, credentials": {
            "provider": "generic",
            "token_url": authority.token_url,
            "scope": "smtp",
            **client,
        },
        "generic, refresh token": {
            "provider": "generic",
            "token_url": authority.token_url,
            **refresh,
        },
    }[name]


WAYS = [
    *("microsoft, credentials", "microsoft, refresh token"),
    *("google, a file", "google, a dict", "google, refresh token"),
    *("generic, credentials", "generic, refresh token"),
]


@pytest.mark.parametrize("way", WAYS)
def test_each_way_to_a_token_logs_in(
    way: str, authority, mailbox, use_options, queue_mail, deliver, tmp_path, caplog
) -> None:
    caplog.set_level(logging.DEBUG)  # libraries log too
    form = way_to_a_token(way, authority, tmp_path)
    use_options(host="127.0.0.1", port=mailbox.port, username=MAILBOX, oauth=form)
    assert connection.probe("smtp") is None
    queue_mail("to@example.com")
    deliver()
    assert len(mailbox.accepted) == 1
    authority.revoke()
    assert connection.probe("smtp") is None  # renewed by the same way
    assert len(authority.issued) == 2
    secrets = [*authority.issued, authority.refresh_token, CLIENT_SECRET]
    assert not any(secret in caplog.text for secret in secrets)


@pytest.mark.parametrize("way", [it for it in WAYS if "refresh" in it and "google" not in it])
def test_a_refresh_token_that_is_replaced_is_used_from_then_on(
    way: str, authority, tmp_path
) -> None:
    authority.rotates = True
    source = TokenSource(way_to_a_token(way, authority, tmp_path), BOX)
    first = source.current(5)
    second = source.renewed(first, 5)
    assert source.renewed(second, 5).value not in (first.value, second.value)
    assert authority.refresh_token not in source.safe_text(f"bad {authority.refresh_token}")


@pytest.mark.parametrize(
    ("way", "answer", "told"),
    [
        ("microsoft, credentials", "AADSTS7000222: expired", "Certificates & secrets"),
        ("microsoft, credentials", "AADSTS700016: no such app", "overview page"),
        ("microsoft, credentials", "AADSTS65001: no consent", "SMTP.SendAsApp"),
        ("microsoft, refresh token", "AADSTS700082: expired", "sign in once more"),
        ("google, a dict", "unauthorized_client", "Domain-wide delegation"),
        ("google, refresh token", "revoked", "consent screen is in testing"),
    ],
)
def test_an_error_says_what_to_do_in_the_providers_console(
    way: str, answer: str, told: str, authority, tmp_path
) -> None:
    form = way_to_a_token(way, authority, tmp_path)
    error = "unauthorized_client" if answer == "unauthorized_client" else "invalid_grant"
    authority.fail(400, error=error, error_description=answer)
    with pytest.raises(TokenRefused) as caught:
        token(form)
    assert answer.split(":")[0] in str(caught.value)
    assert told in str(caught.value)


@pytest.mark.parametrize("provider", ["microsoft", "generic"])
def test_a_public_client_has_no_secret(provider: str, authority, tmp_path) -> None:
    form = way_to_a_token(f"{provider}, refresh token", authority, tmp_path)
    del form["client_secret"]
    with pytest.raises(TokenRefused, match="AADSTS7000215"):  # the authority wants one
        token(form)
    assert authority.requests["refresh_token"] == 1


def test_an_unknown_tenant_is_named(authority) -> None:
    form = {**MICROSOFT, "tenant": "x", "client_secret": "y", "authority": authority.url}
    with pytest.raises(TokenRefused, match=r"directory \(tenant\) id"):
        token(form)


@pytest.mark.parametrize(
    "way", ["microsoft, credentials", "google, a dict", "generic, credentials"]
)
def test_an_authority_that_cannot_be_reached_is_reported(
    way: str, authority, tmp_path, monkeypatch
) -> None:
    form = way_to_a_token(way, authority, tmp_path)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "")  # its certificate is not trusted
    with pytest.raises(TokenRefused, match=r"SSLError|TransportError") as caught:
        token(form)
    assert CLIENT_SECRET not in str(caught.value)


@pytest.mark.parametrize("status", [302, 307, 308])
@pytest.mark.parametrize("way", [it for it in WAYS if it != "google, a file"])
def test_secrets_follow_no_redirect(way: str, status: int, authority, tmp_path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as elsewhere:
        elsewhere.setblocking(False)
        url = f"http://127.0.0.1:{elsewhere.getsockname()[1]}/"
        authority.fail(status, times=10, location=url, error="moved")
        with pytest.raises(TokenRefused) as caught:
            token(way_to_a_token(way, authority, tmp_path))
        with pytest.raises(BlockingIOError):  # nobody has connected
            elsewhere.accept()
    assert CLIENT_SECRET not in str(caught.value)


def test_an_answer_that_is_not_json_is_refused(authority, tmp_path) -> None:
    authority.fail(200)
    authority._faults[0] = (200, ["a list"])
    with pytest.raises(TokenRefused, match="200 without JSON"):
        token(way_to_a_token("generic, credentials", authority, tmp_path))


def a_token() -> str:
    return "opaque"


def a_token_for_a_minute() -> tuple[str, float]:
    return "short", 60


@pytest.mark.parametrize(
    ("name", "value"), [("a_token", "opaque"), ("a_token_for_a_minute", "short")]
)
def test_a_function_of_the_site_returns_the_token(name: str, value: str) -> None:
    assert token({"token": f"{__name__}.{name}"}) == value


def test_an_answer_without_a_lifetime_counts_for_an_hour() -> None:
    assert token_providers._answer({"access_token": "t", "expires_in": "soon"}).lifetime == 3600


@pytest.mark.parametrize(
    ("form", "told"),
    [
        (None, "must be a dict; it is a NoneType"),
        ({}, "oauth\\['provider'\\] must be one of 'microsoft', 'google', 'generic'"),
        ({"provider": "yahoo"}, "must be one of"),
        ({"provider": ["google"]}, "must be one of"),
        (MICROSOFT, "needs the keys client_id, client_secret, tenant or"),
        ({**MICROSOFT, "client_secret": "s", "tennant": "x"}, "unknown keys: tennant"),
        ({**MICROSOFT, "client_secret": ""}, "'client_secret'\\] must be a text"),
        ({**MICROSOFT, "client_secret": 5}, "'client_secret'\\] must be a text"),
        ({**MICROSOFT, "client_secret": "s", "authority": "http://a.example"}, "https URL"),
        ({**MICROSOFT, "client_secret": "s", "mechanism": "PLAIN"}, "XOAUTH2, OAUTHBEARER"),
        ({"provider": "google", "service_account": "/nowhere.json"}, "FileNotFoundError"),
        ({"provider": "google", "service_account": {"type": "x"}}, "cannot be read"),
        ({"token": "nowhere.at_all"}, "cannot be imported"),
    ],
)
def test_a_wrong_option_is_explained_without_its_values(form: Any, told: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=told) as caught:
        TokenSource(form, BOX)
    assert CLIENT_ID not in str(caught.value)


def test_a_mailbox_is_needed() -> None:
    with pytest.raises(ImproperlyConfigured, match="'username'"):
        TokenSource({"token": f"{__name__}.a_token"}, Mailbox("", "smtp.example.com", 587))


@pytest.mark.parametrize(
    ("package", "form"),
    [
        ("msal", {**MICROSOFT, "client_secret": "s"}),
        ("google.auth.transport.requests", {"provider": "google", "service_account": {"a": "b"}}),
    ],
)
def test_a_missing_package_is_named_with_its_extra(package, form, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra, match=r'"django-epica-mail\[oauth\]"'):
        TokenSource(form, BOX)
