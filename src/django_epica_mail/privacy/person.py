"""Finds a person in the tables by their e-mail address, and the mails that concern them."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from email.utils import parseaddr
from typing import Any
from urllib.parse import quote
from uuid import UUID

from django.apps import apps
from django.db import models

from django_epica_mail import messages
from django_epica_mail.exceptions import MissingKey
from django_epica_mail.messages import encryption
from django_epica_mail.models import EmailBatch, EmailLog, EmailRecipient

CHUNK = 200
"""How many rows are read at a time."""

RESULT_TEXTS = ("task_args", "task_kwargs", "result", "traceback", "meta")
"""The columns of django-celery-results that may contain an address."""

LOG_TEXTS = ("object_repr", "change_message")
"""The columns of the admin's log that may contain an address."""

Advance = Callable[[int, int], None]
"""Called with the number of mails examined so far and the total."""


class Person:
    """One person, recognised by their address in every form it may be written in."""

    def __init__(self, address: str) -> None:
        """Take an address; raise ``ValueError`` if it is invalid."""
        bare = parseaddr(address)[1].lower()
        local, _, domain = bare.rpartition("@")
        if not (local and domain) or any(it.isspace() for it in bare):
            raise ValueError(f"{address!r} is not an e-mail address.")
        self.addresses = [bare, *(f"{local}@{other}" for other in _spellings(domain))]
        """The spellings that recipients' rows may contain."""
        self._written = {
            form
            for it in self.addresses
            for form in (it, quote(it).lower(), quote(it, safe="@").lower(), json.dumps(it)[1:-1])
        }
        longest_first = sorted(self._written, key=len, reverse=True)
        self._pattern = re.compile(
            # Not inside a longer address, but after an escaped line end, as in JSON or a repr.
            rf"(?:(?<![\w.+-])|(?<=\\[nrt]))(?:{'|'.join(map(re.escape, longest_first))})"
            r"(?![\w-]|\.\w)",
            re.IGNORECASE,
        )

    def is_named(self, address: object) -> bool:
        """Return whether an address, with or without a display name, is this person's."""
        return parseaddr(str(address))[1].lower() in self.addresses

    def is_mentioned(self, text: str) -> bool:
        """Return whether a text contains the address, not just inside a longer one."""
        return self._pattern.search(text) is not None

    def is_mentioned_in(self, stored: str) -> bool:
        """Return whether any string in JSON, such as a stored message, contains the address."""
        return self.occurs_in(stored) and any(map(self.is_mentioned, _texts(json.loads(stored))))

    def occurs_in(self, text: str) -> bool:
        """Return whether a text contains the address, even inside a longer one."""
        lowered = text.lower()
        return any(written in lowered for written in self._written)

    def scrub(self, text: str) -> str:
        """Return a text with the address replaced by ``[erased]``."""
        return self._pattern.sub("[erased]", text)

    def filter(self, names: Iterable[str]) -> models.Q:
        """Return the condition that one of the columns may contain the address."""
        wanted = models.Q(pk__in=[])
        for name in names:
            for address in self._written:
                wanted |= models.Q(**{f"{name}__icontains": address})
        return wanted


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
    rows = EmailLog.objects.using(using).order_by("pk")
    total, done, last = rows.count(), 0, None
    while True:
        following = rows if last is None else rows.filter(pk__gt=last)
        chunk = list(
            following.only("pk", "status", "subject", "from_email", "reply", "envelope")[:CHUNK]
        )
        if not chunk:
            return
        last = chunk[-1].pk
        kinds, others = _recipients(person, [log.pk for log in chunk], using)
        for log in chunk:
            found = Found(log.pk, log.status, kinds[log.pk], others[log.pk])
            _search(found, log, person)
            if found.roles or not found.is_readable:
                yield found
        done += len(chunk)
        advance(done, total)


def unfinished_batches(person: Person, using: str) -> list[UUID]:
    """Return the unexpanded bulk calls that mention a person or cannot be read."""
    found = []
    waiting = EmailBatch.objects.using(using).exclude(payload="")
    for batch in waiting.only("pk", "payload").iterator(chunk_size=1):
        try:
            if person.is_mentioned_in(encryption.unseal(batch.payload)):
                found.append(batch.pk)
        except MissingKey:
            found.append(batch.pk)
    return found


def optional_model(app_label: str, name: str) -> Any:
    """Return a model, or ``None`` if its app is not installed."""
    try:
        return apps.get_model(app_label, name)
    except LookupError:
        return None


def _texts(form: Any) -> Iterator[str]:
    if isinstance(form, str):
        yield form
    elif isinstance(form, dict):
        for key, value in form.items():
            yield key
            yield from _texts(value)
    elif isinstance(form, list):
        for value in form:
            yield from _texts(value)


def _spellings(domain: str) -> list[str]:
    """Return a domain's other spellings: ASCII for an international one, or the reverse."""
    try:
        other = (
            domain.encode("ascii").decode("idna")
            if domain.isascii()
            else (domain.encode("idna").decode())
        )
    except UnicodeError:
        return []
    return [other] if other != domain else []


def _recipients(
    person: Person, ids: list[UUID], using: str
) -> tuple[dict[UUID, set[str]], dict[UUID, int]]:
    """Return which headers of each mail name a person, and how many other recipients it has."""
    kinds: dict[UUID, set[str]] = defaultdict(set)
    others: dict[UUID, int] = defaultdict(int)
    rows = EmailRecipient.objects.using(using).filter(email_id__in=ids).order_by()
    for email_id, kind, address in rows.values_list("email_id", "kind", "address"):
        if address in person.addresses:
            kinds[email_id].add(kind)
        else:
            others[email_id] += 1
    return kinds, others


def _search(found: Found, log: EmailLog, person: Person) -> None:
    if person.is_named(log.from_email):
        found.roles.add("from")
    try:
        content = encryption.unseal(log.envelope)
    except MissingKey:
        found.is_readable = False
        content = ""
    if person.is_mentioned_in(content):
        message = messages.load(log.envelope, messages.AbsentAttachments())
        if any(map(person.is_named, message.reply_to)):
            found.roles.add("reply-to")
        if not found.roles:
            found.roles.add("mentioned")
    elif not found.roles and person.is_mentioned(f"{log.subject}\n{log.reply}"):
        found.roles.add("mentioned")
