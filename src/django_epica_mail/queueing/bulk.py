"""Stores bulk calls whole in the caller's transaction; a worker expands them into mails.

What an entry takes from the surroundings of the call is read in the caller, as for a single mail:
files, and the language in which text is read. The worker may run on another host.

Each chunk of entries becomes rows in one transaction, which also advances the batch's position.
Expansion can therefore resume after an interruption without losing or duplicating an entry.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from datetime import timedelta
from pathlib import Path
from traceback import walk_tb
from typing import Any, NamedTuple
from uuid import UUID

from django.core.exceptions import ImproperlyConfigured
from django.core.mail import EmailMessage
from django.db import Error, OperationalError, connections, router, transaction
from django.utils import translation
from django.views.decorators.debug import sensitive_variables

from django_epica_mail import clock, conf
from django_epica_mail.broker import celery_config, doorbell
from django_epica_mail.exceptions import MissingExtra, UnreadableEnvelope, is_passing
from django_epica_mail.messages import UnencodableValue, encode, encryption
from django_epica_mail.messages.tagged_json import MOST_LEVELS
from django_epica_mail.models import EmailBatch, EmailLog
from django_epica_mail.queueing import compose, draft, enqueue, parts
from django_epica_mail.queueing.call_options import CallOptions
from django_epica_mail.queueing.draft import Draft
from django_epica_mail.queueing.rendering import render
from django_epica_mail.replies import reply_text
from django_epica_mail.results import Refusal

_NO_OPTIONS = CallOptions()
_PACKAGE = __name__.partition(".")[0] + "."

_PROGRESS = ("position", "accepted", "refused", "finished_at")

_MOST_REFUSED, _MOST_REASONS = 10_000, 1_000
"""How many refused entries are listed, and how many of these with the reason: each chunk writes the
list anew, and MariaDB refuses a long statement."""

_CHUNK_SECONDS = 5.0
"""Seconds after which a chunk gets no more entries: templates may be slow."""

_OF_SITE = (ImproperlyConfigured, MissingExtra)
"""Errors of this worker's settings or packages, which need not mean that an entry is wrong."""

_UNKNOWN_COLUMN = 1054
"""MySQL's number for it; like SQLite's errors of SQL, it has the class of those that pass."""


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
    files: parts.Files = {}

    def stored(entry: object) -> Any:
        return _stored(options.apply_to(entry), None if is_foreign else files)

    try:
        # A map, for the frames of a generator are cut off from this one, which hides their
        # variables from error reports.
        parts.save(batch, map(stored, emails), files, using)
    except UnencodableValue as error:
        raise TypeError(
            f"An entry of emails holds a value of the type {error}, which cannot be stored for "
            "the worker: give strings, numbers, bytes, dates, lists or dicts."
        ) from None
    except RecursionError:
        raise ValueError(
            f"An entry of emails holds lists or dicts more than {MOST_LEVELS} deep in one another, "
            "or one that holds itself: give flatter values."
        ) from None
    return batch


def ring_on_commit(batch: EmailBatch) -> None:
    """Wake a worker to expand a batch once the caller's transaction commits."""
    using = router.db_for_write(EmailBatch)
    queue = batch.queue or None
    doorbell.ring_for_batch_on_commit(str(batch.pk), using=using, queue=queue)


@sensitive_variables()
def expand(batch_id: UUID | str, *, until: float | None = None) -> EmailBatch:
    """Make the mails of a bulk call, resuming after an interruption; return the batch.

    Does nothing if the batch is finished. With ``until``, a monotonic second, it leaves the rest to
    another ring then, and all of it to another worker who is at it; otherwise it ends only when the
    batch is finished.
    """
    using = router.db_for_write(EmailBatch)
    batch = EmailBatch.objects.using(using).get(pk=batch_id)
    expansion = _Expansion(batch, using)
    while not batch.is_finished:
        has_advanced = expansion.advance()
        if until is None or batch.is_finished:
            continue
        if not has_advanced:
            break
        if time.monotonic() >= until:
            doorbell.ring_for_batch(str(batch.pk), queue=batch.queue or None)
            break
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


class _Chunk(NamedTuple):
    """Entries as they are to be recorded."""

    size: int
    drafts: list[Draft]
    refused: list[dict[str, Any]]


class _Expansion:
    """One worker's work on a bulk call."""

    def __init__(self, batch: EmailBatch, using: str) -> None:
        self._batch, self._using = batch, using
        self._part, self._files = parts.load(batch)
        self._alone_until = 0
        """Entries before this one are expanded one by one."""
        self._has_made = False

    def advance(self) -> bool:
        """Expand some entries; return ``False`` if another worker has done so in the meantime."""
        start = self._batch.position
        if self._part is None or self._part.is_behind(start):
            self._part = parts.find(self._batch, start, self._using)
        if self._part is None:
            self._check_another_has_advanced(start)
            return False
        size = 1 if start < self._alone_until else enqueue.CHUNK
        entries = self._part.entries_from(start, size)
        self._note_begun(start)
        try:
            return self._record(start, self._part, self._made_of(entries, start))
        except Exception as error:
            is_of_entry = entries and not (_passes(error) or isinstance(error, _OF_SITE))
            if not is_of_entry or connections[self._using].in_atomic_block:
                self._note_begun(start, is_over=True)
                raise
            if len(entries) == 1:
                refused = [_refusal(self._batch, start, entries[0], error)]
                return self._record(start, self._part, _Chunk(1, [], refused))
        self._alone_until = start + len(entries)  # to find the one that the database refuses
        return self.advance()

    def _made_of(self, entries: Sequence[Any], start: int) -> _Chunk:
        """Return what becomes of the first entries; in no transaction, for templates may query.

        An error that passes is raised, and the sweep rings again. So is one of the site's
        configuration that keeps every entry from being made, for as long as mail may wait.
        """
        of_celery = celery_config.site_route(bulk=True)
        until = time.monotonic() + _CHUNK_SECONDS
        drafts, refused, end = [], [], start
        of_site: list[Exception] = []
        for index, entry in enumerate(entries, start):
            try:
                message, options = compose.compose(_named(_with_files(entry, self._files)))
                made = draft.draft(
                    message,
                    options,
                    of_celery=of_celery,
                    bulk=True,
                    batch=self._batch,
                    called_at=self._batch.created_at,
                )
                drafts.append(made)
            except Exception as error:  # a bad entry or template must not stop others
                is_endless = isinstance(error, celery_config.INTERRUPTION)
                if _passes(error) and not is_endless:
                    raise
                if isinstance(error, _OF_SITE):
                    of_site.append(error)
                refused.append(_refusal(self._batch, index, entry, error))
            end = index + 1
            if time.monotonic() >= until:
                break
        self._has_made = self._has_made or bool(drafts)  # then its configuration is not wrong
        if len(of_site) == end - start and of_site and not self._has_made and self._may_wait():
            raise of_site[0]
        return _Chunk(end - start, drafts, refused)

    def _note_begun(self, start: int, *, is_over: bool = False) -> None:
        """Keep the sweep from ringing until this worker must have ended, or if it ``is_over``.

        An entry may take long, or never end: one worker is enough for it.
        """
        seconds = 0.0 if is_over else conf.get().task_seconds
        mine = EmailBatch.objects.using(self._using).filter(pk=self._batch.pk, position=start)
        with suppress(Error) if is_over else nullcontext():
            mine.filter(finished_at=None).update(active_at=clock.now(seconds))

    def _may_wait(self) -> bool:
        """Return whether the call is no older than mail may become that waits for its transport."""
        patience = timedelta(seconds=conf.get().give_up_after)
        rows = EmailBatch.objects.using(self._using).filter(pk=self._batch.pk)
        return rows.filter(created_at__gt=clock.now(-patience)).exists()

    def _record(self, start: int, part: parts.Part, chunk: _Chunk) -> bool:
        """Insert the mails of a chunk, and record it in the batch; return whether this worker did.

        Two workers on the same batch take turns: the second finds that the position has changed. A
        finished batch never matches.
        """
        batch, using = self._batch, self._using
        rows = EmailBatch.objects.using(using).filter(pk=batch.pk)
        end = start + chunk.size
        with transaction.atomic(using=using):
            mine = rows.filter(position=start, finished_at=None)
            if is_mine := mine.update(position=end, active_at=clock.now()) == 1:
                # Now that the row is locked: an erasure may have changed what was read before.
                batch.refresh_from_db(using, fields=("accepted", "refused"))
                inserted = enqueue.insert_drafts(chunk.drafts)
                done = not chunk.size or end >= batch.total
                rows.update(
                    accepted=batch.accepted + enqueue.count_new(chunk.drafts, inserted),
                    refused=_bounded([*batch.refused, *chunk.refused]),
                    **({"finished_at": clock.now(), "payload": ""} if done else {}),
                )
                if part.is_behind(end):
                    batch.parts.using(using).filter(start=part.start).delete()
        batch.refresh_from_db(using, fields=_PROGRESS)
        return is_mine

    def _check_another_has_advanced(self, position: int) -> None:
        """Read the progress of the batch again; raise ``UnreadableEnvelope`` if there is none."""
        self._batch.refresh_from_db(self._using, fields=_PROGRESS)
        if self._batch.position == position and not self._batch.is_finished:
            raise UnreadableEnvelope(
                f"The entries of the bulk call {self._batch.pk} from number {position} on are "
                "missing: the row that held them has been deleted."
            )


def _passes(error: Exception) -> bool:
    """Return whether an error is no fault of an entry: another worker, or this one later, may
    succeed.
    """
    if isinstance(error, celery_config.INTERRUPTION):
        return True  # unless it comes while the entry is made
    if isinstance(error, OperationalError):
        is_of_sql = str(error).startswith(("no such ", "near ")) or _UNKNOWN_COLUMN in error.args
        return not is_of_sql
    return isinstance(error, MemoryError) or (isinstance(error, Error) and is_passing(error))


def _refusal(batch: EmailBatch, index: int, entry: object, error: Exception) -> dict[str, Any]:
    """Return the record of an entry that becomes no mail."""
    reason = reply_text(f"{type(error).__name__}: {error}") if _keeps(entry) else ""
    sealed = encryption.seal(reason, encryption.refusal_of(batch.pk, index)) if reason else ""
    refusal = Refusal(index=index, error=type(error).__name__, rule=_rule(error))
    return {**refusal, "reason": sealed}


def _bounded(refused: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the first of the refused entries, of which only the very first keep their reason."""
    later = ({**it, "reason": ""} for it in refused[_MOST_REASONS:_MOST_REFUSED])
    return [*refused[:_MOST_REASONS], *later]


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
