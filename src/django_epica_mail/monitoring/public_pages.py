"""Requests the public addresses as a visitor would, and finds what keeps visitors away.

The requests are made in this process, through the site's middleware and URLs: no server need run,
and what stands before it, such as a proxy, is not seen. They change nothing.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit
from wsgiref.util import setup_testing_defaults

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.handlers.wsgi import WSGIHandler, WSGIRequest
from django.http import HttpResponse
from django.test import override_settings
from django.urls import NoReverseMatch, get_script_prefix, reverse

from django_epica_mail import clock, conf
from django_epica_mail.tracking import links

_VISITOR = "192.0.2.1"
"""An address of nobody (RFC 5737)."""


@dataclass(frozen=True, slots=True)
class Obstacle:
    """A public address at which visitors do not reach the page of this package."""

    request: str
    """The method and the path; dots stand for the token of a link."""
    answer: str
    """The status and, for a redirect, where it leads."""
    cause: str
    """The dotted path of the middleware that is in the way; empty if none is."""


@dataclass(frozen=True, slots=True)
class _Page:
    method: str
    path: str
    shown: str
    """The path without the token of a link."""
    is_ours: Callable[[HttpResponse], bool]
    """Whether an answer is that of the page."""


def examine() -> list[Obstacle]:
    """Return what is in the way at each public address that the site serves."""
    with _quiet():
        return [found for page in _pages() if (found := _obstacle(page)) is not None]


def _pages() -> Iterator[_Page]:
    """Yield the pages that the site routes, with requests that change nothing.

    The links are valid, but of a mail that does not exist. That of the POST is not valid, or it
    would suppress somebody.
    """
    try:
        for name, is_ours in (("health", _is_health), ("metrics", _is_metrics)):
            path = reverse(f"epica_mail:{name}")
            yield _Page("GET", path, path, is_ours)
        site, nobody = str(conf.get().base_url), clock.uuid7()
        for name, link in (
            ("open", links.open_url(nobody)),
            ("click", links.click_url(nobody, site)),
            ("unsubscribe", links.unsubscribe_url(f"{uuid.uuid4().hex}@doctor.invalid")),
        ):
            shown = reverse(f"epica_mail:{name}", args=["..."])
            yield _Page("GET", link.removeprefix(site.rstrip("/")), shown, _is_of_a_link)
        yield _Page("POST", reverse("epica_mail:unsubscribe", args=["x"]), shown, _is_of_a_link)
    except (ImproperlyConfigured, NoReverseMatch):
        return  # not routed, or no link can be made, which the checks report where links are needed


def _is_of_a_link(answer: HttpResponse) -> bool:
    return "X-Robots-Tag" in answer.headers and answer.status_code < 500


def _is_health(answer: HttpResponse) -> bool:
    is_json = answer.headers.get("Content-Type") == "application/json"
    return is_json and answer.status_code in (200, 503) and b'"status"' in answer.content


def _is_metrics(answer: HttpResponse) -> bool:
    return "epica_mail" in answer.headers.get("WWW-Authenticate", "")


def _obstacle(page: _Page) -> Obstacle | None:
    middleware: Sequence[str] = settings.MIDDLEWARE
    answer = _answer(page, middleware)
    if page.is_ours(answer):
        return None
    # The culprit ends the shortest part of the list that keeps the request from the page.
    counts = range(len(middleware) + 1)
    shortest = next(
        (it for it in counts if not page.is_ours(_answer(page, middleware[:it]))), len(middleware)
    )
    location = answer.headers.get("Location", "").partition("?")[0]
    return Obstacle(
        request=f"{page.method} {page.shown}",
        answer=f"{answer.status_code} (to {location})" if location else str(answer.status_code),
        cause=middleware[shortest - 1] if shortest else "",
    )


def _answer(page: _Page, middleware: Sequence[str]) -> HttpResponse:
    with override_settings(MIDDLEWARE=list(middleware)):
        handler: Any = WSGIHandler()
        answer: HttpResponse = handler.get_response(WSGIRequest(_environ(page)))
    return answer


def _environ(page: _Page) -> dict[str, Any]:
    """Return the request as a server hands it over."""
    site = urlsplit(conf.get().base_url or "https://localhost")
    prefix = get_script_prefix().rstrip("/")
    environ: dict[str, Any] = {
        "REQUEST_METHOD": page.method,
        "SCRIPT_NAME": prefix,
        "PATH_INFO": page.path.removeprefix(prefix),
        "REMOTE_ADDR": _VISITOR,
        "HTTP_HOST": _host(site.netloc),
        "HTTP_USER_AGENT": "django-epica-mail doctor",
        "SERVER_NAME": site.hostname,
        "wsgi.url_scheme": site.scheme,
    }
    if settings.SECURE_PROXY_SSL_HEADER and site.scheme == "https":
        name, value = settings.SECURE_PROXY_SSL_HEADER
        environ[name] = value
    setup_testing_defaults(environ)
    return environ


def _host(named: str) -> str:
    """Return the host of ``BASE_URL``; without it, the first host that the site allows."""
    allowed = [it.lstrip(".") for it in settings.ALLOWED_HOSTS if it.strip("*.")]
    return named if conf.get().base_url or not allowed else allowed[0]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep answers such as 401 out of the site's log of requests, which may mail errors."""
    loggers = [logging.getLogger(f"django.{name}") for name in ("request", "security")]
    before = [logger.disabled for logger in loggers]
    for logger in loggers:
        logger.disabled = True
    try:
        yield
    finally:
        for logger, was_disabled in zip(loggers, before, strict=True):
            logger.disabled = was_disabled
