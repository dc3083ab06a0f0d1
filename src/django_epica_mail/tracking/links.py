"""Links that a mail carries: signed, and good for one purpose each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

from django.core.exceptions import ImproperlyConfigured
from django.core.signing import BadSignature, Signer
from django.urls import NoReverseMatch, reverse

from django_epica_mail import conf, suppression

_UNSUBSCRIBE, _OPEN, _CLICK = "unsubscribe", "open", "click"


@dataclass(frozen=True, slots=True)
class Unsubscription:
    """Who wants no more mail of a category; ``scope`` is empty for all mail."""

    found_by: str
    """The digest of the address, which itself stands in no link."""
    scope: str
    email_id: UUID | None
    """The mail that carried the link, if one did."""


def unsubscribe_url(address: str, category: str = "", *, email_id: UUID | None = None) -> str:
    """Return the link by which an address unsubscribes from a category, or from all mail.

    For the body of a mail; the header has one of its own. Raises ``ImproperlyConfigured`` where
    the site has no address of its own.
    """
    mail = email_id.hex if email_id else ""
    return _url(_UNSUBSCRIBE, [suppression.digest(address), category, mail])


def open_url(email_id: UUID) -> str:
    """Return the address of the image by which a mail tells that it is opened."""
    return _url(_OPEN, [email_id.hex])


def click_url(email_id: UUID, url: str) -> str:
    """Return the link that leads to ``url`` and tells that it is followed."""
    return _url(_CLICK, [email_id.hex, url])


def read_unsubscribe(token: str) -> Unsubscription:
    """Return what an unsubscribe link says; raise ``BadSignature`` for what is not ours."""
    found_by, scope, mail = _read(_UNSUBSCRIBE, token)
    return Unsubscription(found_by, scope, UUID(mail) if mail else None)


def read_open(token: str) -> UUID:
    """Return the mail that is opened; raise ``BadSignature`` for what is not ours."""
    (mail,) = _read(_OPEN, token)
    return UUID(mail)


def read_click(token: str) -> tuple[UUID, str]:
    """Return the mail and where its link leads; raise ``BadSignature`` for what is not ours."""
    mail, url = _read(_CLICK, token)
    if not leads_to_a_page(url):
        raise BadSignature("The link leads to no page.")
    return UUID(mail), url


def leads_to_a_page(url: str) -> bool:
    """Tell whether a link is of http or https and names a host, and nothing hides in it."""
    try:
        parts = urlsplit(url)
        has_host = bool(parts.hostname)
    except ValueError:
        return False
    is_plain = url.isprintable() and " " not in url and "\\" not in url
    return parts.scheme in ("http", "https") and has_host and is_plain


def check() -> None:
    """Raise ``ImproperlyConfigured``, naming the remedy, where no link can be made."""
    _path(_UNSUBSCRIBE, "x")


def _url(purpose: str, what: list[Any]) -> str:
    path = _path(purpose, _signer(purpose).sign_object(what))
    return f"{(conf.get().base_url or '').rstrip('/')}{path}"


def _path(purpose: str, token: str) -> str:
    if conf.get().base_url is None:
        raise ImproperlyConfigured(
            "A mail is to carry links to your site, and EPICA_MAIL['BASE_URL'] is not set: set it "
            "to the site's own address, 'https://www.example.com' for instance."
        )
    try:
        return reverse(f"epica_mail:{purpose}", args=[token])
    except NoReverseMatch:
        raise ImproperlyConfigured(
            "A mail is to carry links to your site, which does not serve them: add "
            "path('mail/', include('django_epica_mail.urls')) to its URLs."
        ) from None


def _read(purpose: str, token: str) -> Any:
    return _signer(purpose).unsign_object(token)


def _signer(purpose: str) -> Signer:
    return Signer(salt=f"django_epica_mail.{purpose}", sep=".")
