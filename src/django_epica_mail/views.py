"""The public pages: open pixel, click redirect, unsubscribe, health and metrics."""

from __future__ import annotations

import base64
import ipaddress
import logging
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from functools import cache
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

from django.contrib.auth.decorators import login_not_required
from django.core.signing import BadSignature, SignatureExpired
from django.db import DatabaseError, transaction
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect, JsonResponse
from django.template import TemplateDoesNotExist, loader
from django.template.backends.django import DjangoTemplates
from django.utils.crypto import constant_time_compare
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_http_methods, require_safe

from django_epica_mail import conf, suppression
from django_epica_mail.exceptions import words_of
from django_epica_mail.messages.addresses import canonical, masked
from django_epica_mail.monitoring.health import Check, HealthReport, examine
from django_epica_mail.monitoring.metrics import exposition
from django_epica_mail.tracking import bots, events, links
from django_epica_mail.tracking.events import Kind, Visit
from django_epica_mail.tracking.links import Unsubscription

logger = logging.getLogger(__name__)

_IMAGE = base64.b64decode("R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7")
"""A GIF of one transparent pixel."""

CHANGES_A_MINUTE = 12
"""How often the choice behind a link to unsubscribe may be changed within a minute and process."""
_MOST_LINKS = 10_000
"""Of so many links a process remembers the changes."""

ANONYMOUS_SECONDS = 5.0
"""Seconds that the health check's verdict for anonymous visitors stands."""

_LONGEST_CLIENT = 1000
_UNSUBSCRIBE_TEMPLATE = "epica_mail/unsubscribe.html"
_PREFERENCES_TEMPLATE = "epica_mail/preferences.html"
_LINK_TEMPLATE = "epica_mail/link.html"
_SCHEME = "bearer"


@login_not_required  # as for every page here: who follows a link of a mail has no session
@never_cache
@require_safe
def open_pixel(request: HttpRequest, token: str) -> HttpResponse:
    """Record that a mail was opened; answer with an invisible image."""
    try:
        email_id = links.read_open(token)
    except BadSignature:
        raise Http404 from None
    _record_visit(request, email_id, Kind.OPENED)
    return _private(HttpResponse(_IMAGE, content_type="image/gif"))


@login_not_required
@never_cache
@require_safe
def click(request: HttpRequest, token: str) -> HttpResponse:
    """Record that a link was followed; redirect to its signed target only.

    If that is on a host which ``CLICK_HOSTS`` does not list, show a page that names it instead.
    """
    try:
        email_id, url = links.read_click(token)
    except SignatureExpired:
        return _private(_page(request, _LINK_TEMPLATE, {"state": "expired"}, status=410))
    except BadSignature:
        raise Http404 from None
    _record_visit(request, email_id, Kind.CLICKED, url)
    if links.leads_home(url):
        return _private(HttpResponseRedirect(url))
    context = {"state": "leaving", "url": url, "host": urlsplit(url).hostname}
    return _private(_page(request, _LINK_TEMPLATE, context))


def _record_visit(request: HttpRequest, email_id: UUID, kind: Kind, url: str = "") -> None:
    """Record a visit; a database error is logged, so that the visitor is served anyway."""
    agent = request.headers.get("User-Agent", "")
    ahead = bots.asks_ahead(request.method or "", request.headers)
    visit = Visit(
        email_id=email_id,
        kind=kind,
        url=url,
        user_agent=agent,
        is_machine=ahead or bots.is_machine(agent),
        ip=client_ip(request) if conf.get().store_ip else None,
    )
    try:
        events.record_visit(visit)
    except DatabaseError as error:  # without its traceback, which may show the row
        logger.error("A visit to e-mail %s could not be recorded (%s).", email_id, words_of(error))


def client_ip(request: HttpRequest) -> str | None:
    """Return the client's IP address as a database stores it, or ``None`` if it is not known.

    ``REMOTE_ADDR`` may hold what a server or a middleware of the site wrote there: a port beside
    the address, a list of which the first is the client, ``unix:``, or anything.
    """
    text = str(request.META.get("REMOTE_ADDR", ""))[:_LONGEST_CLIENT].partition(",")[0].strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return str(getattr(address, "ipv4_mapped", None) or address)


def _page(
    request: HttpRequest, template: str, context: dict[str, Any], *, status: int = 200
) -> HttpResponse:
    """Return a page, rendered by the site's engines or, if none finds its template, by our own.

    None does on a site that has only Jinja2, say.
    """
    try:
        content: str = loader.render_to_string(template, context, request)
    except TemplateDoesNotExist:
        content = _own_engine().get_template(template).render(context, request)
    return HttpResponse(content, status=status)


@cache
def _own_engine() -> DjangoTemplates:
    return DjangoTemplates({"NAME": "epica_mail", "DIRS": [], "APP_DIRS": True, "OPTIONS": {}})


def _private(response: HttpResponse) -> HttpResponse:
    response.headers["X-Robots-Tag"] = "noindex, nofollow"
    response.headers["Referrer-Policy"] = "no-referrer"
    return response


@login_not_required
@csrf_exempt  # RFC 8058, section 3.2: mail clients post without cookies; the link is the proof
@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
def unsubscribe(request: HttpRequest, token: str) -> HttpResponse:
    """Unsubscribe on POST; on GET, which scanners make too, show a page that asks to confirm.

    With ``CATEGORIES``, that page lists them all: people leave one or all of them, and come back.
    """
    try:
        wish = links.read_unsubscribe(token)
    except BadSignature:
        return _unsubscribe_page(request, "unknown", "", status=404)
    titles = _titles(wish)
    state = ""
    if titles and "choice" in request.POST:
        kept = request.POST.getlist("category")
        is_saved = _choose(wish, titles, request.POST["choice"], kept)
        state = "saved" if is_saved else "refused"
    elif request.method == "POST":
        events.unsubscribe(wish.found_by, wish.scope, wish.email_id)
        return _unsubscribe_page(request, "done", wish.scope)
    if not titles:
        return _unsubscribe_page(request, "asked", wish.scope)
    return _preferences_page(request, wish, titles, state)


def _titles(wish: Unsubscription) -> dict[str, str]:
    """Return the titles of the categories to choose among; empty without ``CATEGORIES``.

    The category of the mail that the link came with is one of them, listed or not.
    """
    settings = conf.get()
    if not settings.categories:
        return {}
    titles = {wish.scope: wish.scope} if wish.scope else {}
    titles |= {name: str(title) for name, title in settings.categories.items()}
    return {name: title for name, title in titles.items() if name not in settings.transactional}


class _Changes:
    """How often the choice behind each link was changed through this process, of late."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._made: dict[Unsubscription, deque[float]] = {}

    def allow(self, link: Unsubscription) -> bool:
        """Count a change; return ``False`` if there were too many within a minute."""
        now = time.monotonic()
        with self._lock:
            made = self._made.pop(link, None) or deque(maxlen=CHANGES_A_MINUTE)
            while len(self._made) >= _MOST_LINKS:
                del self._made[next(iter(self._made))]  # used least recently
            self._made[link] = made
            if len(made) == CHANGES_A_MINUTE and now - made[0] < 60:
                return False
            made.append(now)
            return True


_changes = _Changes()


def _choose(wish: Unsubscription, titles: Iterable[str], choice: str, kept: Sequence[str]) -> bool:
    """Carry out what was chosen: to leave all, or to keep the categories ``kept``.

    Returns ``False``, and changes nothing, if the choice was changed too often.
    """
    left = suppression.scopes_left(wish.found_by, events.recipient_of(wish.found_by, wish.email_id))
    wanted = {name for name in titles if name in kept and choice != "none"}
    leaves = {""} if choice == "none" else set(titles) - wanted
    back = left & (wanted | {""}) if wanted else set()  # "" is what "none" left
    if (back or leaves - left) and not _changes.allow(wish):
        return False
    for name in sorted(leaves - left):
        events.unsubscribe(wish.found_by, name, wish.email_id)
    for name in back:
        events.subscribe(wish.found_by, name, wish.email_id)
    return True


def _preferences_page(
    request: HttpRequest, wish: Unsubscription, titles: Mapping[str, str], state: str
) -> HttpResponse:
    """Return the page; ``state`` is what became of a choice: ``saved``, ``refused`` or empty."""
    address = events.recipient_of(wish.found_by, wish.email_id)
    left = suppression.scopes_left(wish.found_by, address)
    categories = [
        {"name": name, "title": title, "is_kept": not {"", name} & left}
        for name, title in titles.items()
    ]
    context = {
        "address": masked(canonical(address)) if address else "",
        "categories": categories,
        "has_left_all": "" in left,
        "is_saved": state == "saved",
        "is_refused": state == "refused",
    }
    status = 429 if state == "refused" else 200  # RFC 6585, section 4
    return _with_secret_url(_page(request, _PREFERENCES_TEMPLATE, context, status=status))


def _unsubscribe_page(
    request: HttpRequest, state: str, category: str, *, status: int = 200
) -> HttpResponse:
    context = {"state": state, "category": category}
    return _with_secret_url(_page(request, _UNSUBSCRIBE_TEMPLATE, context, status=status))


def _with_secret_url(response: HttpResponse) -> HttpResponse:
    response.headers["X-Robots-Tag"] = "noindex"
    response.headers["Referrer-Policy"] = "no-referrer"  # the URL is all it takes to unsubscribe
    return response


@login_not_required
@require_safe
@never_cache
@transaction.non_atomic_requests
def health(request: HttpRequest) -> JsonResponse:
    """Answer with the verdict, and with the single checks for those who may see them.

    The status is 200 if all is well, otherwise 503. Anonymous visitors get a verdict that is up to
    ``ANONYMOUS_SECONDS`` old, so that they cannot keep the database busy.
    """
    sees_details = may_monitor(request)
    verdict = _last_verdict.ask(max_age=0 if sees_details else ANONYMOUS_SECONDS)
    answer: dict[str, Any] = {"status": _word(verdict.is_well)}
    if sees_details:
        answer["checks"] = {
            check.name: {
                "status": _word(check.is_well),
                "text": check.text,
                "value": check.value,
                "limit": check.limit,
            }
            for check in verdict.checks
        }
    return JsonResponse(answer, status=200 if verdict.is_well else 503)


class _Verdict:
    """The last health report of this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._report: HealthReport | None = None
        self._at = 0.0

    def ask(self, max_age: float) -> HealthReport:
        """Return a report of up to ``max_age`` seconds; simultaneous visitors share one."""
        with self._lock if max_age else nullcontext():
            report = self._report
            if report is None or time.monotonic() - self._at >= max_age:
                report = self._report = _examine()
                self._at = time.monotonic()
            return report


_last_verdict = _Verdict()


def _examine() -> HealthReport:
    try:
        return examine()
    except DatabaseError as error:
        text = _("The tables of mail cannot be read (%(error)s).") % {"error": type(error).__name__}
        return HealthReport((Check("database", False, text),))


def _word(is_well: bool) -> str:
    return "ok" if is_well else "failing"


@login_not_required
@require_safe
@never_cache
def metrics(request: HttpRequest) -> HttpResponse:
    """Answer with all metrics in the requested format; with 401 if the request may not see them."""
    if not may_monitor(request):
        # RFC 6750, section 3
        return HttpResponse(status=401, headers={"WWW-Authenticate": 'Bearer realm="epica_mail"'})
    content, content_type = exposition(request.headers.get("Accept", ""))
    return HttpResponse(content, content_type=content_type)


def may_monitor(request: HttpRequest) -> bool:
    """Return whether a request is from staff or carries ``EPICA_MAIL["MONITORING_TOKEN"]``.

    The token is read only from the header ``Authorization: Bearer ...`` (RFC 6750, section 2.1),
    because URLs end up in logs.
    """
    token = conf.get().monitoring_token
    scheme, _, shown = request.headers.get("Authorization", "").partition(" ")
    if token and scheme.lower() == _SCHEME:
        return constant_time_compare(shown.strip(), token)
    user = getattr(request, "user", None)  # missing without Django's authentication middleware
    try:
        return bool(user and user.is_active and user.is_staff)
    except DatabaseError:
        return False  # the health check must be able to report that the database is down
