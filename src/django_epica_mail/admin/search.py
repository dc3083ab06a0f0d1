"""Searching mails: the form of what is looked for says which one column is asked.

A condition on several columns at once could be served by no index.
"""

from __future__ import annotations

from functools import reduce
from uuid import UUID

from django.db import connections
from django.db.models import Q
from django.utils.translation import gettext_lazy as _

from django_epica_mail.admin.recency import recent
from django_epica_mail.models import EmailLog, EmailQuerySet, EmailRecipient

HELP = _(
    "An id, a Message-ID in angle brackets, an address or its beginning (name@ or name*), "
    "or words of the subject (of the newest 50,000 e-mails)."
)

_MOST = 1_000
"""How many mails an address is looked up for by its index alone; of more, the newest are meant."""
_LAST = "\U0010ffff"


def search(rows: EmailQuerySet, term: str) -> EmailQuerySet:
    """Return those of ``rows`` that a search term means."""
    term = term.strip()
    if not term:
        return rows
    if (pk := _uuid(term)) is not None:
        return rows.filter(pk=pk)
    if term.startswith("<") and term.endswith(">"):
        return rows.filter(message_id=term)
    if term.startswith("@"):
        return _to(recent(rows), Q(address__endswith=term.lower()))
    if " " not in term and ("@" in term or term.endswith("*")):
        return _addressed(rows, term.lower().rstrip("*"))
    words = (Q(subject__icontains=word) for word in term.split())
    return recent(rows).filter(reduce(Q.__and__, words))


def _uuid(term: str) -> UUID | None:
    try:
        return UUID(term)
    except ValueError:
        return None


def _addressed(rows: EmailQuerySet, beginning: str) -> EmailQuerySet:
    condition = _starts_with(beginning, rows.db)
    recipients = EmailRecipient.objects.using(rows.db).filter(condition).order_by()
    ids = list(recipients.values_list("email_id", flat=True)[: _MOST + 1])
    if len(ids) <= _MOST:
        return rows.filter(pk__in=set(ids))
    return _to(recent(rows), condition)


def _to(rows: EmailQuerySet, condition: Q) -> EmailQuerySet:
    """Return those of recent ``rows`` that go to certain addresses."""
    recipients = recent(EmailLog.objects.using(rows.db)).filter(
        pk__in=EmailRecipient.objects.using(rows.db).filter(condition).values("email")
    )
    return rows.filter(pk__in=recipients.values("pk"))


def _starts_with(text: str, using: str) -> Q:
    """Return a condition on an address that the index of each database can serve."""
    vendor = connections[using].vendor
    if vendor == "mysql":  # which compares without case then, and as bytes, past the index, else
        return Q(address__istartswith=text)
    if vendor == "sqlite":  # whose LIKE has no use for an index
        return Q(address__gte=text, address__lt=text + _LAST)
    return Q(address__startswith=text)
