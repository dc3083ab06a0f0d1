"""Stores bulk calls whole in the caller's transaction; a worker expands them into mails.

What an entry takes from the surroundings of the call is read in the caller, as for a single mail:
files, and the language in which text is read. The worker may run on another host.

A long call is stored in parts, so that neither a process nor a statement holds all of it.

Each chunk of entries becomes rows in one transaction, which also advances the batch's position.
Expansion can therefore resume after an interruption without losing or duplicating an entry.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from traceback import walk_tb
from typing import Any
from uuid import UUID, uuid5

from django.core.mail import EmailMessage
from django.db import router, transaction
from django.utils import translation
from django.views.decorators.debug import sensitive_variables

from django_epica_mail import clock, conf
from django_epica_mail.broker import celery_config, doorbell
from django_epica_mail.exceptions import UnreadableEnvelope
from django_epica_mail.messages import UnencodableValue, decode, encode, encryption
from django_epica_mail.models import EmailBatch, EmailLog
from django_epica_mail.queueing import compose, draft, enqueue
from django_epica_mail.queueing.call_options import CallOptions
from django_epica_mail.queueing.rendering import render
from django_epica_mail.replies import reply_text
from django_epica_mail.results import Refusal

_NO_OPTIONS = CallOptions()
_PACKAGE = __name__.partition(".")[0] + "."

_PROGRESS = ("position", "accepted", "refused", "finished_at")

_PART_LENGTH = 4_000_000
"""Characters after which a part gets no more entries, because MariaDB refuses long statements."""


@sensitive_variables()
def submit(
    emails: object, *, options: CallOptions = _NO_OPTIONS, is_foreign: bool = False
) -> EmailBatch:
    """Store a bulk call in the caller's transaction; ``expand`` makes its mails.

    ``emails`` is a list of dicts: the arguments of ``send_email_async`` by name, optionally with
    ``template_name`` and ``context`` instead of the bodies. Invalid entries are reported by
    ``expand``; refused here is a value that cannot be stored, with ``TypeError``, a file that is
    too large, with ``InvalidMessage``, one that cannot be read, with ``OSError``, and an id of
    ``options`` that is in use, with ``ValueError``. The files of a call that ``is_foreign`` are not
    read: who wrote it has no right to the files of this host.
    """
    if isinstance(emails, (str, bytes)) or not isinstance(emails, Sequence):
        raise TypeError(f"emails must be a list of dicts; it is {type(emails).__name__}.")
    using = router.db_for_write(EmailBatch)
    batch = EmailBatch(total=len(emails), queue=options.queue or "")
    if options.batch_id is not None:
        batch.pk = _free_id(options.batch_id, using)
    files: dict[str, Any] = {}
    entries = (_stored(options.apply_to(it), None if is_foreign else files) for it in emails)
    try:
        _save(batch, _texts(entries), files, using)
    except UnencodableValue as error:
        raise TypeError(
            f"An entry of emails holds a value of the type {error}, which cannot be stored for "
            "the worker: give strings, numbers, bytes, dates, lists or dicts."
        ) from None
    return batch


def ring_on_commit(batch: EmailBatch) -> None:
    """Wake a worker to expand a batch once the caller's transaction commits."""
    using = router.db_for_write(EmailBatch)
    queue = batch.queue or None
    doorbell.ring_for_batch_on_commit(str(batch.pk), using=using, queue=queue)


@sensitive_variables()
def expand(batch_id: UUID | str) -> EmailBatch:
    """Make the mails of a bulk call, resuming after an interruption; return the batch.

    Does nothing if the batch is finished.
    """
    using = router.db_for_write(EmailBatch)
    batches = EmailBatch.objects.using(using)
    batch = batches.get(pk=batch_id)
    part, files = _stored_with(batch)
    while not batch.is_finished:
        start = batch.position
        if part is None or part.is_behind(start):
            part = _find_part(batch, start, using)
        if part is None:
            _check_another_has_advanced(batch, start, using)
            continue
        chunk = part.chunk(start)
        with transaction.atomic(using=using):
            # Two workers on the same batch take turns: the second finds the position changed. A
            # finished batch never matches.
            claimed = batches.filter(pk=batch.pk, position=start, finished_at=None).update(
                position=start + len(chunk)
            )
            if claimed:
                _insert(batch, [_with_files(entry, files) for entry in chunk], start, using)
                if part.is_behind(start + len(chunk)):
                    batch.parts.using(using).filter(start=part.start).delete()
        batch.refresh_from_db(using, fields=_PROGRESS)
    return batch


@sensitive_variables()
def reason(batch: EmailBatch, index: int) -> str:
    """Return why an entry was refused, which may quote it; empty if that is not kept.

    Raises ``MissingKey`` if none of the site's keys decrypts it.
    """
    entry = next((it for it in batch.refused if it["index"] == index), None)
    return reason_of(batch, entry) if entry else ""


@sensitive_variables()
def reason_of(batch: EmailBatch, entry: dict[str, Any]) -> str:
    """Return what ``reason`` does, for an entry of ``batch.refused``."""
    sealed, place = entry["reason"], encryption.refusal_of(batch.pk, entry["index"])
    return encryption.unseal(sealed, place) if sealed else ""


def _stored(entry: object, files: dict[str, Any] | None) -> Any:
    """Return the JSON form of an entry; read the ``files`` it names, each once for all entries."""
    if not isinstance(entry, dict):
        return encode(entry)
    entry = dict(entry)
    attachments = entry.get("attachments")
    if isinstance(attachments, (list, tuple)):
        entry["attachments"] = [str(it) if isinstance(it, Path) else it for it in attachments]
        for path in entry["attachments"]:
            if isinstance(path, str) and files is not None and path not in files:
                files[path] = _read(path)
    with _language_of(entry):
        if entry.get("template_name") is not None and entry.get("language") is None:
            entry["language"] = _current_language()
        return encode(entry)


def _read(path: str) -> tuple[Any, ...]:
    """Return a file as an attachment, as ``EmailMessage.attach_file`` reads it."""
    draft.check_size(Path(path).stat().st_size)
    message = EmailMessage()
    message.attach_file(path)
    attached: Any = message.attachments[0]
    return tuple(attached)


def _language_of(entry: dict[Any, Any]) -> AbstractContextManager[None]:
    """Return the context of an entry's language; ``expand`` reports one that is not offered."""
    try:
        return render.speaking(entry.get("language"))
    except ValueError:
        return nullcontext()


def _current_language() -> str | None:
    """Return the language of the caller, or ``None`` if it is none of the site's."""
    try:
        return translation.get_supported_language_variant(translation.get_language() or "")
    except LookupError:
        return None


def _with_files(entry: Any, files: Mapping[str, tuple[Any, ...]]) -> Any:
    """Return an entry with the ``files`` that the caller has read in place of their paths."""
    attachments = entry.get("attachments") if isinstance(entry, dict) else None
    if not isinstance(attachments, (list, tuple)):
        return entry
    read = [files.get(it, it) if isinstance(it, str) else it for it in attachments]
    return {**entry, "attachments": read}


def _free_id(wanted: UUID, using: str) -> UUID:
    """Return an id for a batch; raise ``ValueError`` if a handle of it exists."""
    for model in (EmailBatch, EmailLog):
        if model._default_manager.using(using).filter(pk=wanted).exists():
            raise ValueError(
                f"The task_id {wanted} is in use: each call needs its own. Leave it out to get one."
            )
    return wanted


@dataclass(frozen=True, slots=True)
class _Part:
    """Entries of a bulk call that follow one another: those of one row."""

    start: int
    """The number of the first among those of the call."""
    entries: list[Any]
    is_all: bool = False
    """Whether the row is the batch's own."""

    def is_behind(self, position: int) -> bool:
        """Return whether a position is that of a later part."""
        return not self.is_all and position >= self.start + len(self.entries)

    def chunk(self, position: int) -> list[Any]:
        """Return the entries that are expanded together, from a position on."""
        offset = position - self.start
        return self.entries[offset : offset + enqueue.CHUNK]


def _texts(entries: Iterator[Any]) -> Iterator[tuple[int, str]]:
    """Yield the JSON of each part, with the number of its first entry; one if there is no entry."""
    start, length = 0, 0
    texts: list[str] = []
    for index, entry in enumerate(entries):
        if length > _PART_LENGTH:
            yield start, f"[{', '.join(texts)}]"
            start, texts, length = index, [], 0
        texts.append(json.dumps(entry))
        length += len(texts[-1])
    yield start, f"[{', '.join(texts)}]"


def _save(
    batch: EmailBatch, texts: Iterator[tuple[int, str]], files: dict[str, Any], using: str
) -> None:
    """Insert a batch with its entries; ``files`` are known when all ``texts`` are consumed."""
    first, second = next(texts), next(texts, None)
    place = encryption.payload_of(batch.pk)
    if second is None:
        _, entries = first
        # Without files a list, which workers of an earlier version read too.
        payload = f'{{"entries": {entries}, "files": {_json(files)}}}' if files else entries
        batch.payload = encryption.seal(payload, place)
        batch.save(using=using, force_insert=True)
        return
    # With a savepoint: if a later entry cannot be stored, a caller that catches the error must be
    # left with a usable transaction, without the rows inserted so far.
    with transaction.atomic(using=using):
        batch.save(using=using, force_insert=True)
        for start, entries in itertools.chain((first, second), texts):
            pk = _part_id(batch, start)
            payload = encryption.seal(entries, encryption.payload_of(pk))
            batch.parts.using(using).create(pk=pk, batch=batch, start=start, payload=payload)
        # Workers of an earlier version cannot read this, and leave the batch to a newer one.
        batch.payload = encryption.seal(f'{{"files": {_json(files)}}}', place)
        batch.save(using=using, update_fields=["payload"])


def _json(files: dict[str, Any]) -> str:
    return json.dumps(encode(files))


def _stored_with(batch: EmailBatch) -> tuple[_Part | None, dict[str, tuple[Any, ...]]]:
    """Return the entries in a batch's own row, and the files that all of its entries name.

    The entries are ``None`` if they are in parts, and none if the batch is finished.
    """
    if not batch.payload:
        return _Part(0, [], is_all=True), {}
    stored = _opened(batch.payload, batch.pk)
    if isinstance(stored, list):
        return _Part(0, stored, is_all=True), {}
    entries = stored.get("entries")
    return (None if entries is None else _Part(0, entries, is_all=True)), stored["files"]


def _find_part(batch: EmailBatch, position: int, using: str) -> _Part | None:
    """Return the part in which the entry at a position is, or ``None`` if its row is gone."""
    row = batch.parts.using(using).filter(start__lte=position).order_by("start").last()
    if row is None:
        return None
    # By the id that it must have: another part in its place is not read.
    part = _Part(row.start, _opened(row.payload, _part_id(batch, row.start)))
    return None if part.is_behind(position) else part


def _check_another_has_advanced(batch: EmailBatch, position: int, using: str) -> None:
    """Read the progress of a batch again; raise ``UnreadableEnvelope`` if there is none."""
    batch.refresh_from_db(using, fields=_PROGRESS)
    if batch.position == position and not batch.is_finished:
        raise UnreadableEnvelope(
            f"The entries of the bulk call {batch.pk} from number {position} on are missing: the "
            "row that held them has been deleted."
        )


def _opened(payload: str, pk: UUID) -> Any:
    """Return what a batch or a part of it stores."""
    return decode(json.loads(encryption.unseal(payload, encryption.payload_of(pk))))


def _part_id(batch: EmailBatch, start: int) -> UUID:
    """Return the id of the part that begins with an entry; its content is sealed for this id."""
    return uuid5(batch.pk, str(start))


def _insert(batch: EmailBatch, chunk: Sequence[Any], start: int, using: str) -> None:
    """Insert the mails of a chunk of entries, and record the result in the batch."""
    of_celery = celery_config.site_route(bulk=True)
    drafts = []
    for index, entry in enumerate(chunk, start):
        try:
            message, options = compose.compose(_named(entry))
            drafts.append(
                draft.draft(message, options, of_celery=of_celery, bulk=True, batch=batch)
            )
        except MemoryError:
            raise  # no fault of the entry: the sweep rings again, for a worker that has more
        except Exception as error:  # noqa: BLE001 - a bad entry or template must not stop others
            reason = reply_text(f"{type(error).__name__}: {error}") if _keeps(entry) else ""
            sealed = (
                encryption.seal(reason, encryption.refusal_of(batch.pk, index)) if reason else ""
            )
            refusal = Refusal(index=index, error=type(error).__name__, rule=_rule(error))
            batch.refused.append({**refusal, "reason": sealed})
    accepted = batch.accepted + enqueue.count_new(drafts, enqueue.insert_drafts(drafts))
    done = not chunk or start + len(chunk) >= batch.total
    EmailBatch.objects.using(using).filter(pk=batch.pk).update(
        accepted=accepted,
        refused=batch.refused,
        **({"finished_at": clock.now(), "payload": ""} if done else {}),
    )


def _keeps(entry: object) -> bool:
    """Return whether a refused entry's content would have been kept, whatever rule had routed it.

    Otherwise the reason, which may quote it, is not kept either.
    """
    own = entry.get("keep_content") if isinstance(entry, dict) else None
    settings = conf.get()
    of_routes = {rule.keep_content for rule in settings.routes} - {None}
    return own == "always" or (own is None and {settings.keep_content, *of_routes} == {"always"})


def _rule(error: BaseException) -> str:
    """Return the function of this package in which an error was raised, or that called a foreign
    one, as ``module.function``.
    """
    frames = [
        frame.f_globals.get("__name__", "") + "." + frame.f_code.co_name
        for frame, _ in walk_tb(error.__traceback__)
    ]
    own = [it for it in frames if it.startswith(_PACKAGE)]
    return ".".join(own[-1].split(".")[-2:]) if own else ""


def _named(entry: object) -> dict[str, Any]:
    """Return an entry; raise ``TypeError`` or ``ValueError`` for what no entry may be here."""
    if not isinstance(entry, dict):
        raise TypeError(f"An entry must be a dict of named values; it is {entry!r}.")
    attachments = entry.get("attachments")
    compose.check_attachments(attachments)
    if any(isinstance(it, (str, Path)) for it in attachments or ()):
        raise ValueError(
            "attachments names a file that the caller has not read, and a worker reads none: call "
            "send_bulk_emails_task.delay() in a process of the site, or give "
            "(filename, content, mimetype)."
        )
    return entry
