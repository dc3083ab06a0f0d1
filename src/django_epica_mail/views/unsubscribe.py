"""One-click unsubscribe: a page to confirm it on, and the POST of a mail reader."""

from __future__ import annotations

from django.core.signing import BadSignature
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.cache import never_cache
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_http_methods

from django_epica_mail import events, links

_TEMPLATE = "epica_mail/unsubscribe.html"


@csrf_exempt  # RFC 8058, section 3.2: a mail reader posts without cookies; the link is the proof
@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
def unsubscribe(request: HttpRequest, token: str) -> HttpResponse:
    """Show a page to confirm it on; by POST, unsubscribe. A GET, which scanners make, does not."""
    try:
        wish = links.read_unsubscribe(token)
    except BadSignature:
        return _page(request, "unknown", "", status=404)
    if request.method != "POST":
        return _page(request, "asked", wish.scope)
    events.unsubscribe(wish.found_by, wish.scope, wish.email_id)
    return _page(request, "done", wish.scope)


def _page(request: HttpRequest, state: str, category: str, *, status: int = 200) -> HttpResponse:
    response = render(request, _TEMPLATE, {"state": state, "category": category}, status=status)
    response.headers["X-Robots-Tag"] = "noindex"
    response.headers["Referrer-Policy"] = (
        "no-referrer"  # the address of the page is the right to it
    )
    return response
