"""Where the image and the links of a tracked mail lead: each is one write, and an answer."""

from __future__ import annotations

import base64
import logging
from uuid import UUID

from django.core.signing import BadSignature
from django.db import DatabaseError
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from django_epica_mail import conf, events, links, machines
from django_epica_mail.events import Kind, Visit

logger = logging.getLogger(__name__)

_IMAGE = base64.b64decode("R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7")
"""A GIF of one transparent dot."""


@never_cache
@require_safe
def open_(request: HttpRequest, token: str) -> HttpResponse:
    """Note that a mail is opened; answer with an image that nobody sees."""
    try:
        email_id = links.read_open(token)
    except BadSignature:
        raise Http404 from None
    _note(request, email_id, Kind.OPENED)
    return _private(HttpResponse(_IMAGE, content_type="image/gif"))


@never_cache
@require_safe
def click(request: HttpRequest, token: str) -> HttpResponse:
    """Note that a link is followed; lead to where it was meant to, and nowhere else."""
    try:
        email_id, url = links.read_click(token)
    except BadSignature:
        raise Http404 from None
    _note(request, email_id, Kind.CLICKED, url)
    return _private(HttpResponseRedirect(url))


def _note(request: HttpRequest, email_id: UUID, kind: Kind, url: str = "") -> None:
    """Record a visit; the visitor gets what he came for in any case."""
    agent = request.headers.get("User-Agent", "")
    ahead = machines.asks_ahead(request.method or "", request.headers)
    visit = Visit(
        email_id=email_id,
        kind=kind,
        url=url,
        user_agent=agent,
        is_machine=ahead or machines.is_machine(agent),
        ip=request.META.get("REMOTE_ADDR") if conf.get().store_ip else None,
    )
    try:
        events.observe(visit)
    except DatabaseError:
        logger.exception("A visit of e-mail %s could not be recorded.", email_id)


def _private(response: HttpResponse) -> HttpResponse:
    response.headers["X-Robots-Tag"] = "noindex, nofollow"
    response.headers["Referrer-Policy"] = "no-referrer"
    return response
