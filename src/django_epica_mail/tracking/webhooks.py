"""What providers report by webhook, as anymail tells it: made an event of ours."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any
from uuid import UUID

from django.db import router
from django.utils import timezone

from django_epica_mail import clock, suppression
from django_epica_mail.models import DeliveryAttempt, EmailEvent, EmailLog
from django_epica_mail.retry import reply_text
from django_epica_mail.tracking import bots, events
from django_epica_mail.tracking.events import Kind
from django_epica_mail.transports import anymail

_KINDS = {"queued": Kind.ACCEPTED, "sent": Kind.ACCEPTED} | {
    kind.value: kind for kind in Kind if kind is not Kind.ACCEPTED
}
"""Ours, by anymail's word for it."""

_SAYS_HOW_LONG = frozenset(
    {"bouncetype", "type", "event", "severity", "hard_bounce", "bounce_class", "status"}
)
_FOR_NOW = re.compile(r"soft|transient|temporary|blocked|undetermined")
_FOR_GOOD = re.compile(r"hard|permanent|invalid_email|user_unknown|user_inactive")
_SENDGRIDS_FOR_GOOD = "bounce"
_SPARKPOSTS_FOR_GOOD = frozenset({"10", "30", "90"})
_NO_SUCH_ADDRESS = re.compile(r"\b5\.(1\.[1236]|2\.1|4\.4)\b")
"""Enhanced status codes of an address or domain that is not, or is no longer, there; RFC 3463."""


def receive(sender: object, *, event: Any, esp_name: str, **_: Any) -> None:
    """Record an event that anymail's ``tracking`` signal tells.

    Raises ``DatabaseError``, so that the provider, which is answered with 500, tells it again.
    """
    kind = _KINDS.get(event.event_type)
    if kind is None:
        return
    using = router.db_for_write(EmailLog)
    address = suppression.normalise(event.recipient or "")
    provider_id = str(event.message_id or "")[:255]
    agent = str(event.user_agent or "")
    raw = event.esp_event if isinstance(event.esp_event, Mapping) else {}
    mail = _find_email(event.metadata, provider_id, using)
    events.record(
        EmailEvent(
            email_id=mail,
            key=_key(event, esp_name, kind, address),
            kind=kind,
            at=event.timestamp or timezone.now(),
            created_at=clock.now(),
            source=esp_name[:64],
            address=address,
            provider_id=provider_id,
            reason=_reason(kind, event, raw),
            reply=reply_text(event.mta_response or event.description or ""),
            url=_url(event.click_url or "", mail, using),
            user_agent=reply_text(agent)[:255],
            is_machine=kind in (Kind.OPENED, Kind.CLICKED)
            and (bool(raw.get("sg_machine_open")) or (bool(agent) and bots.is_machine(agent))),
        )
    )


def _find_email(metadata: object, provider_id: str, using: str) -> UUID | None:
    """Return the mail an event is of: by our id, else by the provider's, else by Message-ID."""
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
    """Return a link as it is kept: not at all, of a mail whose own content is not kept.

    It may be a secret, to choose a new password by for instance.
    """
    if not url or mail is None:
        return reply_text(url)
    is_kept = EmailLog.objects.using(using).filter(pk=mail, keep_content="always").exists()
    return reply_text(url) if is_kept else ""


def _key(event: Any, esp_name: str, kind: Kind, address: str) -> str:
    """Return a digest that is the same however often a provider tells of an event.

    Amazon SES tells of several recipients under one id; some providers give no id.
    """
    at = event.timestamp.isoformat() if event.timestamp else ""
    what = [event.event_id] if event.event_id else [at, event.message_id, event.click_url]
    text = json.dumps([esp_name, kind, address, *what], default=str)
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()


def _reason(kind: Kind, event: Any, raw: Mapping[str, Any]) -> str:
    if kind is Kind.BOUNCED:
        return events.PERMANENT if is_for_good(event.mta_response or "", raw) else "transient"
    return str(event.reject_reason or "")[:64]


def is_for_good(reply: str, raw: Mapping[str, Any]) -> bool:
    """Tell whether a bounce is for good: by the provider's own words, else by the server's code.

    A bounce of which neither says so is not: to send once more does less harm than never again.
    """
    words = set(_words(raw))
    if any(_FOR_NOW.search(word) for word in words):
        return False
    return (
        any(_FOR_GOOD.search(word) for word in words)
        or (_SENDGRIDS_FOR_GOOD in words and "sg_event_id" in raw)
        or bool(_SPARKPOSTS_FOR_GOOD & words)
        or _NO_SUCH_ADDRESS.search(reply) is not None
    )


def _words(raw: Mapping[str, Any], depth: int = 0) -> Iterator[str]:
    """Yield what the fields of an event that say how long a bounce lasts say."""
    for name, value in raw.items():
        if isinstance(value, Mapping) and depth < 3:
            yield from _words(value, depth + 1)
        elif str(name).lower() in _SAYS_HOW_LONG:
            yield str(name).lower() if value is True else str(value).lower()
