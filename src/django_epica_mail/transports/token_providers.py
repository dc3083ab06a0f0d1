"""Where access tokens come from: Microsoft, Google, any token endpoint, or the site's own function.

The forms of a transport's option ``oauth``, and one request for a token. ``oauth`` keeps tokens.
``cut_off`` bounds any request over HTTP, of providers of mail too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from functools import partial
from importlib import import_module
from ipaddress import ip_address
from socket import SHUT_RDWR, socket
from threading import Timer
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit
from weakref import WeakSet

from django.core.exceptions import ImproperlyConfigured
from django.utils.module_loading import import_string

from django_epica_mail.exceptions import MissingExtra, TokenRefused

MECHANISMS = ("XOAUTH2", "OAUTHBEARER")
"""SASL mechanisms, preferred first: Microsoft offers only XOAUTH2; RFC 7628 defines OAUTHBEARER."""

_MICROSOFT = "https://login.microsoftonline.com"
_GOOGLE_TOKEN_URL = "https://oauth2.googleapis.com/token"  # noqa: S105 - a URL
_GOOGLE_SCOPE = "https://mail.google.com/"

_FORMS: Mapping[str, Sequence[frozenset[str]]] = {
    "microsoft": (
        frozenset({"tenant", "client_id", "client_secret"}),
        frozenset({"tenant", "client_id", "refresh_token"}),
    ),
    "google": (
        frozenset({"service_account"}),
        frozenset({"client_id", "client_secret", "refresh_token"}),
    ),
    "generic": (
        frozenset({"token_url", "client_id", "client_secret"}),
        frozenset({"token_url", "client_id", "refresh_token"}),
    ),
    "function": (frozenset({"token"}),),
}
"""The keys that each provider needs, one set for each way to a token."""

_OPTIONAL = {
    "microsoft": frozenset({"client_secret", "scope", "authority"}),
    "google": frozenset({"scope", "token_url"}),
    "generic": frozenset({"client_secret", "scope"}),
    "function": frozenset[str](),
}
SECRETS = frozenset({"client_secret", "refresh_token", "private_key", "passphrase"})
"""Keys whose values must never be shown."""
_USUAL_LIFETIME = 3600.0
"""Seconds, for a function or an authority that does not say how long its token lives."""


class Answer(NamedTuple):
    """What a provider returned."""

    token: object
    lifetime: float
    """Seconds."""
    refresh_token: str | None = None
    """A refresh token that replaces the one it was got with."""


Fetch = Callable[[float], Answer]
"""Requests a token; takes the seconds that one HTTP request may wait."""


def check(form: Any) -> str:
    """Return the provider of a valid option ``oauth``. Values are not shown: some are secrets."""
    if not isinstance(form, Mapping):
        raise ImproperlyConfigured(f"oauth must be a dict; it is a {type(form).__name__}.")
    provider = form.get("provider", "function" if "token" in form else None)
    if not isinstance(provider, str) or provider not in _FORMS:
        known = ", ".join(repr(name) for name in _FORMS if name != "function")
        raise ImproperlyConfigured(
            f"oauth['provider'] must be one of {known}, or oauth['token'] the dotted path of a "
            "function that returns a token."
        )
    keys = set(form) - {"provider", "mechanism"}
    ways = _FORMS[provider]
    if not any(way <= keys for way in ways):
        needed = " or ".join(", ".join(sorted(way)) for way in ways)
        raise ImproperlyConfigured(f"oauth for {provider!r} needs the keys {needed}.")
    unknown = keys - frozenset[str]().union(*ways, _OPTIONAL[provider])
    if unknown:
        raise ImproperlyConfigured(
            f"oauth for {provider!r} has unknown keys: {', '.join(sorted(map(str, unknown)))}."
        )
    structured = {"service_account", "client_secret"} if provider != "generic" else frozenset()
    for key in keys:
        is_valid = isinstance(form[key], str) or (
            key in structured and isinstance(form[key], Mapping)
        )
        if not is_valid or not form[key]:
            raise ImproperlyConfigured(f"oauth[{key!r}] must be a text that is not empty.")
    if form.get("mechanism", MECHANISMS[0]) not in MECHANISMS:
        raise ImproperlyConfigured(f"oauth['mechanism'] must be one of {', '.join(MECHANISMS)}.")
    for key in ("token_url", "authority"):
        url = urlsplit(form.get(key, "https://example.com"))
        if not url.hostname or (url.scheme != "https" and not is_loopback(url.hostname)):
            raise ImproperlyConfigured(f"oauth[{key!r}] must be an https URL.")
    return provider


def fetcher(provider: str, form: Mapping[str, Any], user: str) -> Fetch:
    """Return what requests tokens for a mailbox. Raises ``ImproperlyConfigured``."""
    return _FETCHERS[provider](form, user)


def is_loopback(host: str) -> bool:
    """Return whether a host is this machine."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _library(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise MissingExtra(
            f"The option oauth needs a package that is not installed ({name}): "
            'pip install "django-epica-mail[oauth]".'
        ) from error


@contextlib.contextmanager
def cut_off(session: Any, seconds: float) -> Iterator[None]:
    """Close the connections of a ``requests`` session after some seconds; ignore anything else.

    The session's own time-outs count per read: a server that drips would hold a worker for ever.
    """
    if not hasattr(session, "adapters"):
        yield
        return
    sockets = vars(session).setdefault("epica_mail_sockets", WeakSet[socket]())
    for adapter in session.adapters.values():
        if "get_connection_with_tls_context" not in vars(adapter):
            _watch(adapter, sockets)

    def end() -> None:
        for it in list(sockets):
            with contextlib.suppress(OSError, TypeError):
                socket.shutdown(it, SHUT_RDWR)  # not that of TLS, which another thread is using

    timer = Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _watch(adapter: Any, sockets: WeakSet[socket]) -> None:
    """Have an adapter of requests note the sockets that it connects."""
    find = adapter.get_connection_with_tls_context

    def watched(*args: Any, **options: Any) -> Any:
        pool = find(*args, **options)
        if "ConnectionCls" not in vars(pool):
            pool.ConnectionCls = _noted(pool.ConnectionCls, sockets)
        return pool

    adapter.get_connection_with_tls_context = watched


def _noted(base: Any, sockets: WeakSet[socket]) -> Any:
    def connect(self: Any) -> None:
        base.connect(self)
        sockets.add(self.sock)

    return type(base.__name__, (base,), {"connect": connect})


@contextlib.contextmanager
def _session(seconds: float) -> Iterator[Any]:
    """Yield a session of ``requests`` that ends in time.

    It follows no redirect, with which the client's secrets would go to another host.
    """
    with _library("requests").Session() as session, cut_off(session, seconds):
        session.max_redirects = 0
        yield session


class _Microsoft:
    """Microsoft Entra ID, by ``msal``: client credentials or a refresh token."""

    def __init__(self, form: Mapping[str, Any], user: str) -> None:
        self._msal = _library("msal")
        self._form = form
        self._refresh_token = form.get("refresh_token")

    def __call__(self, seconds: float) -> Answer:
        form = self._form
        kind = "ConfidentialClientApplication"
        if "client_secret" not in form:
            kind = "PublicClientApplication"
        with _session(seconds) as session:
            session.request = partial(session.request, timeout=seconds)
            # A new client each time: msal's own cache would return the token that was refused.
            client = getattr(self._msal, kind)(
                form["client_id"],
                client_credential=form.get("client_secret"),
                authority=f"{form.get('authority', _MICROSOFT).rstrip('/')}/{form['tenant']}",
                instance_discovery=False,
                http_client=session,
            )
            if self._refresh_token is None:
                scope = form.get("scope", "https://outlook.office365.com/.default")
                returned = client.acquire_token_for_client(scopes=scope.split())
            else:
                scope = form.get("scope", "https://outlook.office.com/SMTP.Send")
                returned = client.acquire_token_by_refresh_token(
                    self._refresh_token, scopes=scope.split()
                )
        answer = _answer(returned)
        self._refresh_token = answer.refresh_token or self._refresh_token
        return answer


class _Google:
    """Google, by ``google-auth``: a service account with delegation, or a refresh token."""

    def __init__(self, form: Mapping[str, Any], user: str) -> None:
        self._transport = _library("google.auth.transport.requests")
        if "service_account" not in form:
            self._credentials = _library("google.oauth2.credentials").Credentials(
                None,
                refresh_token=form["refresh_token"],
                token_uri=form.get("token_url", _GOOGLE_TOKEN_URL),
                client_id=form["client_id"],
                client_secret=form["client_secret"],
            )
            return
        cls = _library("google.oauth2.service_account").Credentials
        account = form["service_account"]
        make = cls.from_service_account_info
        if isinstance(account, str):
            make = cls.from_service_account_file
        scopes = form.get("scope", _GOOGLE_SCOPE).split()
        try:
            self._credentials = make(account, scopes=scopes, subject=user)
        except (OSError, ValueError) as error:
            raise ImproperlyConfigured(
                f"oauth['service_account'] cannot be read ({type(error).__name__}). Name the JSON "
                "file that the Google Cloud console gave for the service account's key."
            ) from None

    def __call__(self, seconds: float) -> Answer:
        credentials = self._credentials
        with _session(seconds) as session:
            credentials.refresh(partial(self._transport.Request(session), timeout=seconds))
        lifetime = _USUAL_LIFETIME
        if credentials.expiry is not None:  # in UTC, without a zone
            now = datetime.now(timezone.utc).replace(tzinfo=None)
            lifetime = (credentials.expiry - now).total_seconds()
        return Answer(credentials.token, lifetime, getattr(credentials, "refresh_token", None))


class _Generic:
    """Any token endpoint of RFC 6749: client credentials (section 4.4) or a refresh token (6)."""

    def __init__(self, form: Mapping[str, Any], user: str) -> None:
        _library("requests")  # so that its absence is said at start-up
        self._form = form
        self._refresh_token = form.get("refresh_token")

    def __call__(self, seconds: float) -> Answer:
        form = self._form
        data = {"grant_type": "client_credentials"}
        if self._refresh_token is not None:
            data = {"grant_type": "refresh_token", "refresh_token": self._refresh_token}
        if "scope" in form:
            data["scope"] = form["scope"]
        auth = None
        if "client_secret" in form:  # section 2.3.1
            auth = (quote(form["client_id"], safe=""), quote(form["client_secret"], safe=""))
        else:
            data["client_id"] = form["client_id"]
        returned: object = None
        with _session(seconds) as session:
            response = session.post(
                form["token_url"], data=data, auth=auth, timeout=seconds, allow_redirects=False
            )
            with contextlib.suppress(ValueError):
                returned = response.json()
        if not isinstance(returned, Mapping):
            raise TokenRefused(f"The token endpoint answered {response.status_code} without JSON.")
        answer = _answer(returned)
        self._refresh_token = answer.refresh_token or self._refresh_token
        return answer


def _answer(returned: Mapping[str, Any]) -> Answer:
    """Return what an authority's JSON says (RFC 6749, section 5). Raises ``TokenRefused``."""
    if "access_token" not in returned:
        raise TokenRefused(f"{returned.get('error')}: {returned.get('error_description')}")
    try:
        lifetime = float(returned.get("expires_in", _USUAL_LIFETIME))
    except (TypeError, ValueError):
        lifetime = _USUAL_LIFETIME
    fresh = returned.get("refresh_token")
    return Answer(returned["access_token"], lifetime, fresh if isinstance(fresh, str) else None)


class _Function:
    """A function of the site's own, which returns a token, or a token and its lifetime."""

    def __init__(self, form: Mapping[str, Any], user: str) -> None:
        try:
            self._function = import_string(form["token"])
        except ImportError as error:
            raise ImproperlyConfigured(f"oauth['token'] cannot be imported: {error}") from None

    def __call__(self, seconds: float) -> Answer:
        returned = self._function()
        value, lifetime = returned if isinstance(returned, tuple) else (returned, _USUAL_LIFETIME)
        return Answer(value, float(lifetime))


_FETCHERS: Mapping[str, Callable[[Mapping[str, Any], str], Fetch]] = {
    "microsoft": _Microsoft,
    "google": _Google,
    "generic": _Generic,
    "function": _Function,
}
