"""Finds a person in the tables by their e-mail address, and the mails that concern them."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any
from uuid import UUID

from django.apps import apps
from django.core.mail import EmailMessage
from django.db import models
from django.db.models.lookups import In

from django_epica_mail import messages
from django_epica_mail.exceptions import UnreadableEnvelope
from django_epica_mail.messages import addresses, encryption
from django_epica_mail.models import (
    EmailBatch,
    EmailBatchPart,
    EmailLog,
    EmailRecipient,
    fields,
)
from django_epica_mail.privacy import occurrences
from django_epica_mail.privacy.occurrences import Hit
from django_epica_mail.queueing.rows import wrong_ids
from django_epica_mail.replies import REPLY_LENGTH

CHUNK = 200
"""How many rows are read at a time."""

_ROWS = 2000
"""How many rows are read at a time, of which only the texts are."""

RESULT_TEXTS = ("task_args", "task_kwargs", "result", "traceback", "meta")
"""The columns of django-celery-results that may contain an address."""

LOG_TEXTS = ("object_repr", "change_message")
"""The columns of the admin's log that may contain an address."""

Advance = Callable[[int, int], None]
"""Called with the number of mails examined so far and the total."""


class Person:
    """One person, recognised by their address in every form it may be written in."""

    def __init__(self, address: str, *, tagged: bool = False) -> None:
        """Take an address; raise ``ValueError`` if it is invalid.

        With ``tagged``, addresses with a tag (``ann+news@example.com``) are the person's too.
        """
        bare = addresses.canonical(address)
        if not addresses.is_complete(bare):
            raise ValueError(f"{address!r} is not an e-mail address.")
        self.addresses = addresses.spellings(bare)
        """The spellings that recipients' rows may contain."""
        self._tagged = tagged
        self._needle = occurrences.Needle(self.addresses, tagged=tagged)

    def is_named(self, address: object) -> bool:
        """Return whether an address, with or without a display name, is this person's."""
        found = addresses.canonical(address)
        if found in self.addresses:
            return True
        local, _, domain = found.rpartition("@")
        return self._tagged and f"{local.partition('+')[0]}@{domain}" in self.addresses

    def recognise(self, address: str) -> bool:
        """Return whether a stored address is this person's, and remember the spelling if it is."""
        is_theirs = self.is_named(address)
        if is_theirs and address not in self.addresses:
            self.addresses.append(address)
        return is_theirs

    def rows(self) -> models.Q:
        """Return the condition that a row's ``address`` is this person's."""
        theirs = models.Q(address__in=self.addresses)
        theirs &= models.Q(In(fields.Exactly("address"), self.addresses))
        if self._tagged:
            for local, _, domain in (it.rpartition("@") for it in self.addresses):
                theirs |= models.Q(address__startswith=f"{local}+", address__endswith=f"@{domain}")
        return theirs

    def is_mentioned(self, text: str) -> bool:
        """Return whether a text contains the address, not just inside a longer one."""
        return any(not hit.longer for hit in self._needle.each(text))

    def is_mentioned_in(self, stored: str) -> bool:
        """Return whether any string in JSON, such as a stored message, contains the address.

        What is damaged, so that it is no JSON, is searched as it is.
        """
        if not self._needle.may_be_in(stored):
            return False
        try:
            return any(map(self.is_mentioned, texts(json.loads(stored))))
        except (ValueError, RecursionError):
            return self.is_mentioned(stored)

    def occurrences(self, text: str, *, is_cut: bool = False) -> list[Hit]:
        """Return where a text contains the address, even inside a longer one."""
        return self._needle.find(text, is_cut=is_cut)

    def scrub(self, text: str, *, is_cut: bool = False) -> str:
        """Return a text with the address replaced by ``[erased]``.

        With ``is_cut``, also the beginning of the address at the end of a text that was cut.
        """
        return occurrences.replace(text, self.occurrences(text, is_cut=is_cut))


@dataclass(slots=True)
class Found:
    """A mail that concerns a person."""

    id: UUID
    status: str
    roles: set[str] = field(default_factory=set)
    """``to``, ``cc``, ``bcc``, ``from`` and ``reply-to``; ``mentioned`` if only elsewhere."""
    others: int = 0
    """How many of its recipients are other people."""
    is_readable: bool = True
    """Whether its content could be decrypted and searched."""


def find(
    person: Person, using: str, advance: Advance = lambda done, total: None
) -> Iterator[Found]:
    """Yield every mail that concerns a person, and every mail whose content cannot be read.

    Reads the whole table, because Reply-To addresses are only in the content, which may be
    encrypted. Calls ``advance`` with the number of mails examined so far and the total.
    """
    rows = EmailLog.objects.using(using)
    total, done = rows.count(), 0
    read = rows.only("pk", "status", "subject", "from_email", "reply", "envelope")
    for chunk in wrong_ids.walk(read, CHUNK):
        kinds, others = _recipients(person, [log.pk for log in chunk], using)
        for log in chunk:
            found = Found(log.pk, log.status, kinds[log.pk], others[log.pk])
            _search(found, log, person)
            found.is_readable &= not fields.is_no_key(log.pk)  # and so cannot be erased
            if found.roles or not found.is_readable:
                yield found
        done += len(chunk)
        advance(done, total)


def mentioning(
    person: Person, rows: models.QuerySet[Any], names: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """Yield the key and some columns of the rows in which one of them contains the address.

    Reads all rows, because no database finds an address in all its encodings.
    """
    for chunk in wrong_ids.walk(rows.values("pk", *names), _ROWS, itemgetter("pk")):
        for row in chunk:
            columns = {name: text for name in names if (text := text_of(row[name]))}
            if any(
                person.occurrences(text, is_cut=is_cut(rows.model, name, text))
                for name, text in columns.items()
            ):
                yield row


def text_of(value: object) -> str:
    """Return a column's value as the text to be searched; empty if there is none."""
    if isinstance(value, str):
        return value
    return json.dumps(value, default=str) if value else ""


def is_cut(model: type[models.Model], name: str, text: str) -> bool:
    """Return whether a text is as long as its column or its writer permits, so may be cut off."""
    return len(text) in (model._meta.get_field(name).max_length, REPLY_LENGTH)  # type: ignore[union-attr]


def unfinished_batches(person: Person, using: str) -> list[UUID]:
    """Return the unexpanded bulk calls that mention a person or cannot be read."""
    found: dict[UUID, None] = {}
    batches = EmailBatch.objects.using(using).exclude(payload="").values_list("pk", "payload")
    whole = ((pk, pk, stored) for pk, stored in batches.iterator(chunk_size=1))
    rows = EmailBatchPart.objects.using(using).values_list("batch_id", "pk", "payload")
    parts = rows.iterator(chunk_size=1)
    for contents, place_of in ((whole, encryption.payload_of), (parts, encryption.part_of)):
        for batch_id, pk, stored in contents:
            try:
                if person.is_mentioned_in(encryption.unseal(stored, place_of(pk))):
                    found[batch_id] = None
            except UnreadableEnvelope:
                found[batch_id] = None
    return list(found)


def optional_model(app_label: str, name: str) -> Any:
    """Return a model, or ``None`` if its app is not installed."""
    try:
        return apps.get_model(app_label, name)
    except LookupError:
        return None


def texts(form: Any) -> Iterator[str]:
    """Yield every string in what JSON holds, keys included."""
    if isinstance(form, str):
        yield form
    elif isinstance(form, dict):
        for key, value in form.items():
            yield key
            yield from texts(value)
    elif isinstance(form, list):
        for value in form:
            yield from texts(value)


def _recipients(
    person: Person, ids: list[UUID], using: str
) -> tuple[dict[UUID, set[str]], dict[UUID, int]]:
    """Return which headers of each mail name a person, and how many other recipients it has.

    As the rows say it.
    """
    kinds: dict[UUID, set[str]] = defaultdict(set)
    others: dict[UUID, int] = defaultdict(int)
    rows = EmailRecipient.objects.using(using).filter(email_id__in=ids).order_by()
    for email_id, kind, address in rows.values_list("email_id", "kind", "address"):
        if person.recognise(address):
            kinds[email_id].add(kind)
        else:
            others[email_id] += 1
    return kinds, others


def _search(found: Found, log: EmailLog, person: Person) -> None:
    """Add what the columns and the content of a mail say about a person.

    Where the content is encrypted, it decides alone: whoever can write to the database could
    otherwise have somebody else's mail handed out to them.
    """
    if person.is_named(log.from_email):
        found.roles.add("from")
    place = encryption.envelope_of(log.pk)
    try:
        content = encryption.unseal(log.envelope, place)
        is_in_content = person.is_mentioned_in(content)
        if log.envelope and (found.roles or is_in_content):
            message = messages.load(log.envelope, messages.AbsentAttachments(), place)
            if encryption.is_sealed(log.envelope):
                found.roles, found.others = _named_in(message, person)
            if any(map(person.is_named, message.reply_to or ())):
                found.roles.add("reply-to")
    except UnreadableEnvelope:
        found.is_readable = is_in_content = False
    is_mentioned = is_in_content or person.is_mentioned(f"{log.subject}\n{log.reply}")
    if not found.roles and is_mentioned:
        found.roles.add("mentioned")


def _named_in(message: EmailMessage, person: Person) -> tuple[set[str], int]:
    """Return which headers of a message name a person, and how many other recipients it has."""
    roles = {
        role
        for role, addresses in (
            ("from", [message.from_email]),
            ("to", message.to),
            ("cc", message.cc),
            ("bcc", message.bcc),
        )
        if any(map(person.is_named, addresses or ()))
    }
    recipients = message.recipients()
    others = [it for it in recipients if not person.is_named(it)]
    if len(others) < len(recipients) and not roles & set(EmailRecipient.Kind.values):
        roles.add(EmailRecipient.Kind.BCC.value)  # of a class that returns more than its fields
    return roles, len(others)
