"""The search of the list of e-mails: by whatever people have of one.

A term is read in several ways, one after the other, until one of them finds something.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import UUID

from django.db import connections
from django.db.models import Q
from django.utils.translation import gettext_lazy as _

from django_epica_mail.admin.base import of_recent, of_words, recent
from django_epica_mail.messages.addresses import canonical, is_complete
from django_epica_mail.models import (
    DeliveryAttempt,
    EmailEvent,
    EmailQuerySet,
    EmailRecipient,
)
from django_epica_mail.rules import address_pattern

if TYPE_CHECKING:
    from django_stubs_ext import StrOrPromise

_MOST_LOOKED_UP = 1_000
"""An address with more e-mails than this is searched for only among the newest."""
_LAST = "\U0010ffff"
"""Sorts after every other character."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One way to read a search term."""

    label: StrOrPromise
    """What it takes the term for."""
    applies: Callable[[str], bool]
    """Returns whether a term may be this."""
    find: Callable[[EmailQuerySet, str], EmailQuerySet]
    """Returns those of the e-mails that match."""


def search(rows: EmailQuerySet, term: str) -> EmailQuerySet:
    """Return the ``rows`` that match a search term in the first reading that finds any."""
    term = term.strip()
    if not term:
        return rows
    *others, last = _readings(term)
    for reading in others:
        found = reading.find(rows, term)
        if found.exists():
            return found
    return last.find(rows, term)


def tried(term: str) -> list[StrOrPromise]:
    """Return what a search takes a term for, in this order."""
    return [reading.label for reading in _readings(term.strip())]


def _readings(term: str) -> Iterator[Reading]:
    yield from (reading for reading in READINGS if reading.applies(term))


def _is_word(term: str) -> bool:
    return " " not in term


def _is_id(term: str) -> bool:
    return _uuid(term) is not None


def _uuid(term: str) -> UUID | None:
    try:
        return UUID(term)
    except ValueError:
        return None


def _by_id(rows: EmailQuerySet, term: str) -> EmailQuerySet:
    return rows.filter(pk=UUID(term))


def _spellings(term: str) -> list[str]:
    """Return an id as given, and with and without angle brackets."""
    bare = term.removeprefix("<").removesuffix(">")
    return list(dict.fromkeys([term, bare, f"<{bare}>"]))


def _is_message_id(term: str) -> bool:
    return _is_word(term) and "@" in term.strip("@")


def _by_message_id(rows: EmailQuerySet, term: str) -> EmailQuerySet:
    return rows.filter(message_id__in=_spellings(term))


def _by_provider_id(rows: EmailQuerySet, term: str) -> EmailQuerySet:
    ids: set[UUID] = set()
    for model in (DeliveryAttempt, EmailEvent):
        named = model._default_manager.using(rows.db).filter(
            provider_id__in=_spellings(term), email__isnull=False
        )
        ids.update(named.order_by().values_list("email_id", flat=True)[:_MOST_LOOKED_UP])
    return rows.filter(pk__in=ids)


def _is_address(term: str) -> bool:
    return is_complete(canonical(term))


def _by_address(rows: EmailQuerySet, term: str) -> EmailQuerySet:
    return _addressed(rows, canonical(term))


def _is_beginning(term: str) -> bool:
    return _is_word(term) and ("@" in term[1:] or term.endswith("*"))


def _by_beginning(rows: EmailQuerySet, term: str) -> EmailQuerySet:
    return _addressed(rows, address_pattern(term).rstrip("*"))


def _is_domain(term: str) -> bool:
    return _is_word(term) and "@" not in term[1:] and (term[0] == "@" or "." in term)


def _by_domain(rows: EmailQuerySet, term: str) -> EmailQuerySet:
    pattern = address_pattern(term if term[0] == "@" else f"@{term}")
    return _to(rows, Q(address__endswith=pattern))


def _by_words(rows: EmailQuerySet, term: str) -> EmailQuerySet:
    """Return e-mails by words of the subject, and by the beginning of an address if it is one."""
    found = recent(rows).filter(of_words(term))
    if not _is_word(term) or "@" in term:
        return found
    beginning = _starts_with(canonical(term), rows.db)
    recipients = EmailRecipient.objects.using(rows.db).filter(beginning)
    ids = recipients.order_by().values_list("email_id", flat=True)
    if len(addressed := set(ids[: _MOST_LOOKED_UP + 1])) > _MOST_LOOKED_UP:
        addressed = set(of_recent(ids).order_by("-email")[:_MOST_LOOKED_UP])
    return found | rows.filter(pk__in=addressed)


READINGS = (
    Reading(_("an e-mail's id"), _is_id, _by_id),
    Reading(_("a Message-ID"), _is_message_id, _by_message_id),
    Reading(_("a provider's id"), _is_word, _by_provider_id),
    Reading(_("an address"), _is_address, _by_address),
    Reading(_("the beginning of an address"), _is_beginning, _by_beginning),
    Reading(_("a domain, among the newest 50,000 e-mails"), _is_domain, _by_domain),
    Reading(
        _("the beginning of an address, or words of a subject among the newest 50,000 e-mails"),
        lambda term: True,
        _by_words,
    ),
)
"""The readings in the order in which they are tried; the last one applies to any term."""


def _addressed(rows: EmailQuerySet, beginning: str) -> EmailQuerySet:
    condition = _starts_with(beginning, rows.db)
    recipients = EmailRecipient.objects.using(rows.db).filter(condition).order_by()
    ids = list(recipients.values_list("email_id", flat=True)[: _MOST_LOOKED_UP + 1])
    if len(ids) <= _MOST_LOOKED_UP:
        return rows.filter(pk__in=set(ids))
    return _to(rows, condition)


def _to(rows: EmailQuerySet, condition: Q) -> EmailQuerySet:
    """Return those of the recent ``rows`` with a recipient that meets a condition."""
    recipients = EmailRecipient.objects.using(rows.db).filter(condition).order_by()
    return rows.filter(pk__in=of_recent(recipients).values("email"))


def _starts_with(text: str, using: str) -> Q:
    """Return a condition on the beginning of an address that the database's index can serve."""
    vendor = connections[using].vendor
    if vendor == "mysql":  # where ``startswith`` is LIKE BINARY, which cannot use the index
        return Q(address__istartswith=text)
    if vendor == "sqlite":  # where LIKE cannot use the index
        return Q(address__gte=text, address__lt=text + _LAST)
    return Q(address__startswith=text)
