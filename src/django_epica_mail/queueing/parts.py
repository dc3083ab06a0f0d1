"""The rows in which the entries of a bulk call wait until they are expanded.

A long call is stored in parts, so that neither a process nor a statement holds all of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid5

from django.db import transaction

from django_epica_mail.messages import decode, encode, encryption
from django_epica_mail.models import EmailBatch

PART_LENGTH = 4_000_000
"""Characters after which a part gets no more entries, because MariaDB refuses long statements."""

Files = dict[str, tuple[Any, ...]]
"""The files that entries name, by path, each as an attachment."""


@dataclass(frozen=True, slots=True)
class Part:
    """Entries of a bulk call that follow one another: those of one row."""

    start: int
    """The number of the first among those of the call."""
    entries: list[Any]
    is_all: bool = False
    """Whether the row is the batch's own."""

    def is_behind(self, position: int) -> bool:
        """Return whether a position is that of a later part."""
        return not self.is_all and position >= self.start + len(self.entries)

    def entries_from(self, position: int, size: int) -> list[Any]:
        """Return up to ``size`` entries from a position on."""
        offset = position - self.start
        return self.entries[offset : offset + size]


def save(batch: EmailBatch, entries: Iterable[Any], files: Files, using: str) -> None:
    """Insert a batch with its entries; ``files`` are known when all of them are consumed."""
    rest = iter(entries)
    first, second = _take(rest), _take(rest)
    place = encryption.payload_of(batch.pk)
    if not second:
        # Without files a list, which workers of an earlier version read too.
        text = _list(first)
        payload = f'{{"entries": {text}, "files": {_json(files)}}}' if files else text
        batch.payload = encryption.seal(payload, place)
        batch.save(using=using, force_insert=True)
        return
    # With a savepoint: if a later entry cannot be stored, a caller that catches the error must be
    # left with a usable transaction, without the rows inserted so far.
    with transaction.atomic(using=using):
        batch.save(using=using, force_insert=True)
        start = _insert(batch, 0, first, using)
        while second:
            start = _insert(batch, start, second, using)
            second = _take(rest)
        # Workers of an earlier version cannot read this, and leave the batch to a newer one.
        batch.payload = encryption.seal(f'{{"files": {_json(files)}}}', place)
        batch.save(using=using, update_fields=["payload"])


def load(batch: EmailBatch) -> tuple[Part | None, Files]:
    """Return the entries in a batch's own row, and the files that all of its entries name.

    The entries are ``None`` if they are in parts, and none if the batch is finished.
    """
    if not batch.payload:
        return Part(0, [], is_all=True), {}
    stored = _opened(batch.payload, encryption.payload_of(batch.pk))
    if isinstance(stored, list):
        return Part(0, stored, is_all=True), {}
    entries = stored.get("entries")
    return (None if entries is None else Part(0, entries, is_all=True)), stored["files"]


def find(batch: EmailBatch, position: int, using: str) -> Part | None:
    """Return the part in which the entry at a position is, or ``None`` if its row is gone."""
    row = batch.parts.using(using).filter(start__lte=position).order_by("start").last()
    if row is None:
        return None
    # By the id that it must have: another part in its place is not read.
    part = Part(row.start, _opened(row.payload, encryption.part_of(_part_id(batch, row.start))))
    return None if part.is_behind(position) else part


def _take(entries: Iterator[Any]) -> list[str]:
    """Return the JSON of each of the entries of the next part; none if there are no more."""
    texts: list[str] = []
    length = 0
    for entry in entries:
        texts.append(json.dumps(entry))
        length += len(texts[-1])
        if length > PART_LENGTH:
            break
    return texts


def _insert(batch: EmailBatch, start: int, texts: list[str], using: str) -> int:
    """Insert the part that begins with an entry; return the number of the first after it."""
    pk = _part_id(batch, start)
    payload = encryption.seal(_list(texts), encryption.part_of(pk))
    batch.parts.using(using).create(pk=pk, batch=batch, start=start, payload=payload)
    return start + len(texts)


def _list(texts: list[str]) -> str:
    return f"[{', '.join(texts)}]"


def _json(files: Files) -> str:
    return json.dumps(encode(files))


def _opened(payload: str, place: str) -> Any:
    """Return what a batch or a part of it stores."""
    return decode(json.loads(encryption.unseal(payload, place)))


def _part_id(batch: EmailBatch, start: int) -> UUID:
    """Return the id of the part that begins with an entry; its content is sealed for this id."""
    return uuid5(batch.pk, str(start))
