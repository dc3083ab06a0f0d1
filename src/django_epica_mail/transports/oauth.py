"""Access tokens of OAuth 2 for SMTP: the option ``oauth`` of a transport.

A process keeps each transport's token in memory and fetches another before it expires. Tokens and
secrets are never stored, logged or part of an error.
"""

from __future__ import annotations

import re
import smtplib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeGuard
from urllib.parse import quote

from django.core.exceptions import ImproperlyConfigured

from django_epica_mail import _compat
from django_epica_mail.exceptions import TokenRefused
from django_epica_mail.transports import token_providers
from django_epica_mail.transports.token_providers import MECHANISMS, is_loopback

PASSWORD = "(an access token)"  # noqa: S105 - a mark
"""Stands where a backend keeps its password, so that Django logs in; it is never sent."""

_MAX_TEXT = 500
"""Characters kept of an authority's error."""
_MAX_READ = 10_000
"""Characters of it that are looked at."""
_MAX_TOKEN = 8192
"""RFC 4954, section 4, limits a response to 12,288 bytes of base64."""
_MARGIN = 300.0
"""Seconds before its expiry when a token is renewed, but at most a fifth of its lifetime."""
_HTTP_SECONDS = 10.0
"""The longest that one request to an authority waits."""

_ADVICE: Sequence[tuple[str, str, str]] = (
    (
        "microsoft",
        r"AADSTS7000215|AADSTS7000222|invalid_client",
        "The client secret is wrong or has expired: create one in the Microsoft Entra admin center "
        "(App registrations, Certificates & secrets) and use its value, not its id.",
    ),
    (
        "microsoft",
        r"AADSTS700016|unauthorized_client",
        "Compare client_id and tenant with the app's overview page in the Microsoft Entra admin "
        "center (App registrations).",
    ),
    (
        "microsoft",
        r"AADSTS90002|Unable to get authority configuration",
        "Compare tenant with the directory (tenant) id in the Microsoft Entra admin center.",
    ),
    (
        "microsoft",
        r"AADSTS65001|invalid_scope",
        "Grant admin consent in the Microsoft Entra admin center (App registrations, API "
        "permissions): Office 365 Exchange Online, SMTP.SendAsApp for client credentials, "
        "SMTP.Send for a refresh token.",
    ),
    (
        "microsoft",
        r"invalid_grant",
        "The refresh token has expired or was revoked: sign in once more and set the new one, or "
        "use client credentials, which need no person.",
    ),
    (
        "microsoft",
        r"5\.7\.139|SmtpClientAuthentication",
        "Allow authenticated SMTP for the mailbox: Set-CASMailbox -Identity USER "
        "-SmtpClientAuthenticationDisabled $false.",
    ),
    (
        "microsoft",
        r"\A535 ",
        "In Exchange Online, register the app's service principal (New-ServicePrincipal) and give "
        "it the mailbox (Add-MailboxPermission -AccessRights FullAccess); username must be that "
        "mailbox.",
    ),
    (
        "google",
        r"unauthorized_client|access_denied",
        "In the Google Admin console (Security, API controls, Domain-wide delegation), add the "
        "service account's client id with the scope https://mail.google.com/.",
    ),
    (
        "google",
        r"invalid_client",
        "Compare client_id and client_secret with the Google Cloud console (APIs & Services, "
        "Credentials).",
    ),
    (
        "google",
        r"invalid_grant",
        "The refresh token was revoked or has expired (after 7 days while the consent screen is in "
        "testing), or username is no user of this Google Workspace.",
    ),
    (
        "google",
        r"\A535 ",
        "username must be the mailbox that the token is for, and SMTP must be allowed for it in "
        "the Google Admin console (Apps, Google Workspace, Gmail, End User Access).",
    ),
)
"""Provider, what its error contains, and what to do; the first that matches counts."""


@dataclass(frozen=True, slots=True)
class Token:
    """An access token."""

    value: str = field(repr=False)
    renew_at: float
    """When to fetch another (monotonic seconds)."""
    is_new: bool = field(default=False, compare=False)
    """Whether it was fetched for the login that uses it."""


@dataclass(frozen=True, slots=True)
class Mailbox:
    """The mailbox to log in to, and its server."""

    user: str
    host: str
    port: int


class TokenSource:
    """The access tokens of one transport, for any number of threads of this process."""

    def __init__(self, form: Mapping[str, Any], mailbox: Mailbox) -> None:
        """Raise ``ImproperlyConfigured`` if ``form`` is not a valid option ``oauth``."""
        self.provider = token_providers.check(form)
        if not mailbox.user:
            raise ImproperlyConfigured(
                "oauth needs the mailbox as 'username' in the same OPTIONS (or EMAIL_HOST_USER)."
            )
        self.mailbox = mailbox
        self.mechanisms: Sequence[str] = MECHANISMS
        if "mechanism" in form:
            self.mechanisms = (form["mechanism"],)
        self._secrets = frozenset(_secrets_in(form))
        self._fetch = token_providers.fetcher(self.provider, form, mailbox.user)
        self._lock = threading.Lock()
        self._token: Token | None = None
        self._recent: deque[str] = deque(maxlen=6)

    def __repr__(self) -> str:
        return f"<TokenSource: {self.provider}>"

    def current(self, seconds: float) -> Token:
        """Return a token that has not expired, fetched within about ``seconds`` if necessary.

        Raises ``TokenRefused``.
        """
        with self._lock:
            if self._token is not None and time.monotonic() < self._token.renew_at:
                return self._token
            return self._renew(seconds)

    def renewed(self, refused: Token, seconds: float) -> Token:
        """Return another token than the one the server refused. Raises ``TokenRefused``."""
        with self._lock:
            if self._token is not None and self._token.value != refused.value:
                return self._token  # another thread has renewed it
            self._token = None
            return self._renew(seconds)

    def mechanism(self, offered: str) -> str | None:
        """Return the SASL mechanism to use, given those a server offers; ``None`` if there is none.

        ``offered`` is what follows the keyword AUTH in the reply to EHLO.
        """
        known = offered.upper().split()
        return next((it for it in self.mechanisms if it in known), None)

    def safe_text(self, text: str) -> str:
        """Return foreign text bounded and printable, without secrets, and what to do about it."""
        text = text[:_MAX_READ]
        cleaned = self._without_secrets(text)
        for provider, pattern, advice in _ADVICE:
            if provider == self.provider and re.search(pattern, text):
                return f"{cleaned} {advice}"
        return cleaned

    def _without_secrets(self, text: str) -> str:
        for secret in sorted([*self._secrets, *self._recent], key=len, reverse=True):
            text = text.replace(secret, "[hidden]").replace(quote(secret, safe=""), "[hidden]")
        text = _LONG_WORD.sub("[hidden]", " ".join(text.split()))
        return "".join(it for it in text if it.isprintable())[:_MAX_TEXT]

    def _renew(self, seconds: float) -> Token:
        try:
            answer = self._fetch(min(seconds, _HTTP_SECONDS))
        except Exception as error:  # noqa: BLE001 - each library and function raises its own
            name = "" if isinstance(error, TokenRefused) else f"{type(error).__name__}: "
            words = next((it for it in error.args if isinstance(it, str)), str(error))
            told = self.safe_text(f"{name}{words}")
            raise TokenRefused(f"No access token: {told}") from None  # causes may hold secrets
        if answer.refresh_token:
            self._recent.append(answer.refresh_token)
        if not _is_token(answer.token):
            raise TokenRefused("No access token: what was returned is not one (RFC 6750).")
        kept = answer.lifetime - min(_MARGIN, answer.lifetime / 5)
        self._token = Token(answer.token, time.monotonic() + kept)
        self._recent.append(answer.token)
        return replace(self._token, is_new=True)


_LONG_WORD = re.compile(r"[A-Za-z0-9+/=_\-]{40,}")
"""Hidden in errors: it may be a token in base64."""


def source(alias: str, form: Mapping[str, Any], mailbox: Mailbox) -> TokenSource:
    """Return the source of a transport's tokens, the same one as long as its options are the same.

    Raises ``ImproperlyConfigured``.
    """
    with _lock:
        known = _sources.get(alias)
        if known is None or known[:2] != (form, mailbox):
            known = _sources[alias] = (form, mailbox, TokenSource(form, mailbox))
        return known[2]


def require_encryption(host: str, *, encrypted: bool) -> None:
    """Raise ``ImproperlyConfigured`` if tokens would leave this machine unencrypted (RFC 6750)."""
    if not encrypted and not is_loopback(host):
        raise ImproperlyConfigured(
            f"oauth would send access tokens to {host} unencrypted. Set 'use_tls' (port 587) or "
            "'use_ssl' (port 465) in the same OPTIONS."
        )


def log_in(
    client: smtplib.SMTP, tokens: TokenSource, seconds_left: Callable[[], float]
) -> tuple[int, bytes]:
    """Log in with an access token (XOAUTH2, or RFC 7628) and return the server's reply.

    A token kept from before that the server refuses with 535 is renewed, once. Raises what smtplib
    raises, and ``TokenRefused``.
    """
    client.ehlo_or_helo_if_needed()
    offered = client.esmtp_features.get("auth", "")
    mechanism = tokens.mechanism(offered)
    if mechanism is None:
        raise smtplib.SMTPNotSupportedError(
            f"The server does not offer {' or '.join(tokens.mechanisms)}, which the transport's "
            f"option oauth needs; it offers {offered.strip() or 'no login'}."
        )
    token = tokens.current(seconds_left())
    try:
        return _log_in_with(client, tokens, token, mechanism)
    except smtplib.SMTPAuthenticationError as error:
        if error.smtp_code != 535 or token.is_new:
            raise
    return _log_in_with(client, tokens, tokens.renewed(token, seconds_left()), mechanism)


def _log_in_with(
    client: smtplib.SMTP, tokens: TokenSource, token: Token, mechanism: str
) -> tuple[int, bytes]:
    """Log in with a token; the error of a refusal says what to do, and holds no secret."""
    detail = ""
    first = initial_response(mechanism, tokens.mailbox, token)

    def respond(challenge: bytes | None = None) -> str:
        nonlocal detail
        if challenge is None:
            return first
        detail = challenge.decode("utf-8", "replace")
        return answer_to_error(mechanism)

    try:
        return client.auth(mechanism, respond)
    except smtplib.SMTPAuthenticationError as error:
        words = error.smtp_error
        text = words.decode("utf-8", "replace") if isinstance(words, bytes) else words
        told = tokens.safe_text(f"{error.smtp_code} {text} {detail}")
        told = told.removeprefix(f"{error.smtp_code} ")
        raise smtplib.SMTPAuthenticationError(error.smtp_code, told) from None
    except smtplib.SMTPServerDisconnected:
        raise
    except smtplib.SMTPException as error:  # more challenges than smtplib answers
        raise smtplib.SMTPException(tokens.safe_text(str(error))) from None


def initial_response(mechanism: str, mailbox: Mailbox, token: Token) -> str:
    """Return the first message of the client: XOAUTH2 as Google defines it, or RFC 7628."""
    bearer = f"auth=Bearer {token.value}\x01\x01"
    if mechanism == "XOAUTH2":
        return f"user={mailbox.user}\x01{bearer}"
    name = mailbox.user.replace("=", "=3D").replace(",", "=2C")
    return f"n,a={name},\x01host={mailbox.host}\x01port={mailbox.port}\x01{bearer}"


def answer_to_error(mechanism: str) -> str:
    """Return what a client answers to the error of a server, which then replies 535."""
    return "" if mechanism == "XOAUTH2" else "\x01"


def _secrets_in(form: Mapping[str, Any]) -> Iterator[str]:
    for key, value in form.items():
        if isinstance(value, Mapping):
            yield from _secrets_in(value)
        elif key in token_providers.SECRETS and isinstance(value, str) and value:
            yield value


def _is_token(value: object) -> TypeGuard[str]:
    """Return whether a value may be sent as a token: RFC 6750 allows no control and no space."""
    return (
        isinstance(value, str)
        and re.fullmatch(rf"[\x21-\x7e]{{1,{_MAX_TOKEN}}}", value) is not None
    )


_lock = threading.Lock()
_sources: dict[str, tuple[Mapping[str, Any], Mailbox, TokenSource]] = {}


def _forget_sources() -> None:
    """Start without tokens in a forked child: a lock of the parent's may be held."""
    global _lock, _sources
    _lock, _sources = threading.Lock(), {}


_compat.run_after_fork(_forget_sources)
