"""Receives provider webhooks through anymail and records them as events."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.core.exceptions import ImproperlyConfigured
from django.db import router
from django.urls import get_resolver
from django.utils import timezone
from django.utils.timezone import is_naive, make_aware

from django_epica_mail import clock, conf
from django_epica_mail.messages.addresses import canonical
from django_epica_mail.models import DeliveryAttempt, EmailEvent, EmailLog
from django_epica_mail.replies import reply_text, says_no_such_address
from django_epica_mail.tracking import bots, events
from django_epica_mail.tracking.events import Kind
from django_epica_mail.transports import anymail

_KINDS = {"queued": Kind.ACCEPTED, "sent": Kind.ACCEPTED} | {
    kind.value: kind for kind in Kind if kind is not Kind.ACCEPTED
}
"""Our kinds of event, by anymail's names for them."""

_EARLIEST = datetime(2000, 1, 1, tzinfo=timezone.get_fixed_timezone(0))
_AHEAD = timedelta(days=1)
"""How far a provider's clock may be ahead of ours."""

_BOUNCE_FIELDS = frozenset(
    {"bouncetype", "type", "event", "severity", "hard_bounce", "bounce_class", "status"}
)
_TRANSIENT = re.compile(r"soft|transient|temporary|blocked|undetermined")
_PERMANENT = re.compile(r"hard|permanent|invalid_email|user_unknown|user_inactive")
_SENDGRID_PERMANENT = "bounce"
_SPARKPOST_PERMANENT = frozenset({"10", "30", "90"})


def receive(sender: object, *, event: Any, esp_name: str, **_: Any) -> None:
    """Record an event reported by anymail's ``tracking`` signal.

    Raises ``DatabaseError``: the provider then gets status 500 and reports the event again.
    """
    kind = _KINDS.get(str(event.event_type))
    if kind is None:
        return
    using = router.db_for_write(EmailLog)
    address = canonical(_text(event.recipient))
    provider_id = _text(event.message_id)[:255]
    agent = _text(event.user_agent)
    raw = event.esp_event if isinstance(event.esp_event, Mapping) else {}
    mail = _find_email(event.metadata, provider_id, using)
    events.record(
        EmailEvent(
            email_id=mail,
            key=_key(event, esp_name, kind, address),
            kind=kind,
            at=_time(event.timestamp),
            created_at=clock.now(),
            source=esp_name[:64],
            address=address,
            provider_id=provider_id,
            reason=_reason(kind, event, raw)
            if is_authenticated(sender) or conf.get().trust_unauthenticated_webhooks
            else events.UNAUTHENTICATED,
            reply=_text(event.mta_response or event.description),
            url=_url(_text(event.click_url), mail, using),
            user_agent=agent[:255],
            is_machine=kind in (Kind.OPENED, Kind.CLICKED)
            and (bool(raw.get("sg_machine_open")) or (bool(agent) and bots.is_machine(agent))),
        )
    )


def _text(value: object) -> str:
    """Return a field of an event as text that every database stores; empty if there is none."""
    return reply_text(str(value)) if value else ""


def is_authenticated(view: object) -> bool:
    """Return whether a view of anymail's examines who posts to it, by a secret or a signature.

    ``view`` is the class or an instance. Whatever else sends anymail's signal is code of the site.
    """
    if not getattr(view, "warn_if_no_basic_auth", False):
        return True
    if isinstance(view, type):
        instance = _instance(view)
        return instance is not None and is_authenticated(instance)
    return bool(view.basic_auth)  # type: ignore[attr-defined]


def routed_without_secret() -> list[str]:
    """Return the providers whose webhooks the site routes but does not authenticate."""
    return sorted(
        {
            view.esp_name
            for view in _routed_views(get_resolver().url_patterns)
            if not is_authenticated(view)
        }
    )


def is_routed_and_believed() -> bool:
    """Return whether the site routes a webhook whose bounces and complaints would count."""
    believes_all = conf.get().trust_unauthenticated_webhooks
    return any(
        (believes_all or is_authenticated(view))
        and getattr(view, "webhook_key", True)  # without its key, Mandrill's refuses all requests
        for view in _routed_views(get_resolver().url_patterns)
    )


def _routed_views(patterns: Iterable[Any]) -> Iterator[Any]:
    for pattern in patterns:
        if hasattr(pattern, "url_patterns"):
            yield from _routed_views(pattern.url_patterns)
        else:
            view = getattr(pattern.callback, "view_class", None)
            if hasattr(view, "warn_if_no_basic_auth"):
                instance = _instance(view, **pattern.callback.view_initkwargs)
                if instance is not None:
                    yield instance


def _instance(view: Any, **options: Any) -> Any:
    """Return a view of anymail's, which knows its secrets; ``None`` if it refuses all requests."""
    with warnings.catch_warnings(), contextlib.suppress(ImproperlyConfigured):
        warnings.simplefilter("ignore")  # anymail warns of what the checks report
        return view(**options)
    return None


def _find_email(metadata: object, provider_id: str, using: str) -> UUID | None:
    """Return the id of the event's mail, found by our id, the provider's id or the Message-ID."""
    logs = EmailLog.objects.using(using)
    try:
        our_id = UUID(str(metadata[anymail.ID]))  # type: ignore[index]
    except (KeyError, TypeError, ValueError):
        our_id = None
    if our_id is not None and logs.filter(pk=our_id).exists():
        return our_id
    if not provider_id:
        return None
    attempts = DeliveryAttempt.objects.using(using)
    found = attempts.filter(provider_id=provider_id).values_list("email_id", flat=True).first()
    if found is None:
        wanted = [provider_id, f"<{provider_id}>"]
        found = logs.filter(message_id__in=wanted).values_list("pk", flat=True).first()
    return found


def _url(url: str, mail: UUID | None, using: str) -> str:
    """Return the link to store: empty if the content of its mail is not kept.

    It may be a secret, such as a password reset link.
    """
    if not url or mail is None:
        return url
    log = EmailLog.objects.using(using).filter(pk=mail).first()
    return url if log is not None and log.keeps_content() else ""


def _time(told: datetime | None) -> datetime:
    """Return when an event happened; now, if the provider tells no time that can be.

    Pages that show the edges of the calendar in a time zone raise ``OverflowError``.
    """
    now = timezone.now()
    if told is None:
        return now
    told = make_aware(told) if is_naive(told) else told
    return told if _EARLIEST < told < now + _AHEAD else now


def _key(event: Any, esp_name: str, kind: Kind, address: str) -> str:
    """Return a digest that identifies an event however often the provider reports it.

    Amazon SES reports several recipients under one event id; some providers give no id.
    """
    at = event.timestamp.isoformat() if event.timestamp else ""
    what = [event.event_id] if event.event_id else [at, event.message_id, event.click_url]
    text = json.dumps([esp_name, kind, address, *what], default=str)
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()


def _reason(kind: Kind, event: Any, raw: Mapping[str, Any]) -> str:
    if kind is Kind.BOUNCED:
        return events.PERMANENT if is_for_good(_text(event.mta_response), raw) else "transient"
    return _text(event.reject_reason)[:64]


def is_for_good(reply: str, raw: Mapping[str, Any]) -> bool:
    """Return whether a bounce is permanent, by the provider's classification or the reply code.

    If neither classifies it, it is not: sending once more does less harm than never sending again.
    """
    words = set(_words(raw))
    if any(_TRANSIENT.search(word) for word in words):
        return False
    return (
        any(_PERMANENT.search(word) for word in words)
        or (_SENDGRID_PERMANENT in words and "sg_event_id" in raw)
        or bool(_SPARKPOST_PERMANENT & words)
        or says_no_such_address(reply)
    )


def _words(raw: Mapping[str, Any], depth: int = 0) -> Iterator[str]:
    """Yield the values of those fields of an event that classify a bounce."""
    for name, value in raw.items():
        if isinstance(value, Mapping) and depth < 3:
            yield from _words(value, depth + 1)
        elif str(name).lower() in _BOUNCE_FIELDS:
            yield str(name).lower() if value is True else str(value).lower()
