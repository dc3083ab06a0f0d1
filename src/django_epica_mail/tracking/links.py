"""The links that mails carry: signed, and each valid for one purpose only."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

from django.core.exceptions import ImproperlyConfigured
from django.core.signing import BadSignature, SignatureExpired, Signer
from django.http.request import validate_host
from django.urls import NoReverseMatch, reverse
from django.utils import timezone

from django_epica_mail import clock, conf, suppression

_UNSUBSCRIBE, _OPEN, _CLICK = "unsubscribe", "open", "click"


@dataclass(frozen=True, slots=True)
class Unsubscription:
    """A request for no more mail of a category; an empty ``scope`` means all mail."""

    found_by: str
    """The digest of the address; the address itself is in no link."""
    scope: str
    email_id: UUID | None
    """The mail that carried the link, if any."""


def unsubscribe_url(address: str, category: str = "", *, email_id: UUID | None = None) -> str:
    """Return the link by which an address unsubscribes from a category, or from all mail.

    Put it in the body of a mail; the ``List-Unsubscribe`` header gets a link of its own. Raises
    ``ImproperlyConfigured`` if the site cannot serve it, as ``check`` does.
    """
    mail = email_id.hex if email_id else ""
    return _url(_UNSUBSCRIBE, [suppression.digest(address), category, mail])


def open_url(email_id: UUID) -> str:
    """Return the URL of the image that reports a mail as opened."""
    return _url(_OPEN, [email_id.hex])


def click_url(email_id: UUID, url: str) -> str:
    """Return the link that records a click and redirects to ``url``."""
    return _url(_CLICK, [email_id.hex, url])


def read_unsubscribe(token: str) -> Unsubscription:
    """Return the request that an unsubscribe token encodes; raise ``BadSignature`` if invalid."""
    found_by, scope, mail = _read(_UNSUBSCRIBE, token)
    return Unsubscription(found_by, scope, UUID(mail) if mail else None)


def read_open(token: str) -> UUID:
    """Return the id of the opened mail; raise ``BadSignature`` if the token is invalid."""
    (mail,) = _read(_OPEN, token)
    return UUID(mail)


def read_click(token: str) -> tuple[UUID, str]:
    """Return the mail's id and the link's target.

    Raises ``BadSignature`` if the token is invalid, and ``SignatureExpired``, one of them, if the
    mail was queued more than ``CLICK_LINK_DAYS`` ago.
    """
    mail, url = _read(_CLICK, token)
    if not leads_to_a_page(url):
        raise BadSignature("The link does not lead to a web page.")
    email_id, days = UUID(mail), conf.get().click_link_days
    if days is not None and email_id < clock.lowest_id_at(
        timezone.now() + clock.offset - timedelta(days=days)
    ):
        raise SignatureExpired(f"The mail was queued more than {days} days ago.")
    return email_id, url


def leads_home(url: str) -> bool:
    """Return whether ``CLICK_HOSTS`` lists the host of a URL, so that nobody need be warned."""
    hosts = conf.get().click_hosts
    return hosts is None or validate_host(str(urlsplit(url).hostname), hosts)


def leads_to_a_page(url: str) -> bool:
    """Return whether a URL is http(s), names a host and has no deceptive characters.

    Spaces, backslashes and unprintable characters can hide where it really leads.
    """
    try:
        parts = urlsplit(url)
        has_host = bool(parts.hostname)
    except ValueError:
        return False
    is_plain = url.isprintable() and " " not in url and "\\" not in url
    return parts.scheme in ("http", "https") and has_host and is_plain


def check() -> None:
    """Raise ``ImproperlyConfigured``, naming the remedy, if links cannot be made."""
    _path(_UNSUBSCRIBE, "x")


def _url(purpose: str, what: list[Any]) -> str:
    path = _path(purpose, _signer(purpose).sign_object(what))
    return f"{(conf.get().base_url or '').rstrip('/')}{path}"


def _path(purpose: str, token: str) -> str:
    if conf.get().base_url is None:
        raise ImproperlyConfigured(
            "Mail with links to your site needs EPICA_MAIL['BASE_URL'], which is not set: set it "
            "to the site's own address, such as 'https://www.example.com'."
        )
    try:
        return reverse(f"epica_mail:{purpose}", args=[token])
    except NoReverseMatch:
        raise ImproperlyConfigured(
            "Mail with links to your site needs the pages they lead to, which it does not serve: "
            "add path('mail/', include('django_epica_mail.urls')) to its URLs."
        ) from None


def _read(purpose: str, token: str) -> Any:
    return _signer(purpose).unsign_object(token)


def _signer(purpose: str) -> Signer:
    return Signer(salt=f"django_epica_mail.{purpose}", sep=".")
