"""Prepares each claimed e-mail: loads its message, asks the site, and restricts its recipients."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from email.utils import parseaddr
from fnmatch import fnmatchcase
from typing import Any
from uuid import UUID

from django.core.mail import EmailMessage
from django.db import DatabaseError, connections

from django_epica_mail import conf, lifecycle, replies, rules, signals, suppression
from django_epica_mail.delivery.batch import Batch, ClaimedMail
from django_epica_mail.delivery.limits import rate_limits, slowed_domains
from django_epica_mail.delivery.outcome import (
    Attempt,
    Envelope,
    Outcome,
    judge,
    recipient_outcomes,
)
from django_epica_mail.exceptions import MissingKey, Veto
from django_epica_mail.messages import RawMessage
from django_epica_mail.messages import addresses as forms
from django_epica_mail.models import EmailAttachment, EmailLog, EmailRecipient
from django_epica_mail.retry import Decision, Failure, Kind, Result
from django_epica_mail.tracking import instrument
from django_epica_mail.tracking.bounces import verp
from django_epica_mail.transports import anymail

logger = logging.getLogger(__name__)

_NAMED = 3
"""How many of the original recipients the subject of a redirected e-mail names."""

_ADDRESSED_HEADERS = frozenset({"to", "cc", "bcc"})

_PASSING = (MissingKey, MemoryError)
"""Errors of the site or of this worker, not of the message: another may have key and memory."""

_BARRED = Failure(
    kind=Kind.PERMANENT,
    reply="Not sent: EPICA_MAIL['ALLOWED_RECIPIENTS'] does not allow this address.",
)
_EXPIRED = Failure(kind=Kind.OVERDUE, reply="Not sent before it expired.")
_IN_DOUBT = Failure(kind=Kind.UNKNOWN, reply="Expired; an attempt may have been accepted.")


def prepare(mail: ClaimedMail, loader: MessageLoader) -> Attempt | Outcome:
    """Return the attempt to make, or the outcome if the transport need not be asked.

    Raises ``DatabaseError`` if the database is lost. If only the content of this e-mail cannot be
    read, the e-mail is postponed and the others go on.
    """
    try:
        loader.fetch(mail.row)
    except DatabaseError as error:
        if not loader.has_database:
            raise
        return _unreadable(mail, loader, error)
    if mail.is_expired:
        return _expired(mail, loader)
    if loader.is_suppressed(mail.row):
        return _suppressed(mail, loader)
    if loader.is_slowed(mail.row):
        return Outcome(mail.row, None, Decision(moves=(lifecycle.RELEASE,)))
    try:
        attempt = _build(mail, loader)
    except Veto as veto:
        return _unsent(mail, loader, Failure(kind=Kind.VETOED, reply=veto.reason))
    except Exception as error:  # noqa: BLE001 - one bad message must not stop the others
        return judge(_attempt(mail, EmailMessage(), loader), Result(failure=_failure_of(error)))
    return _hold_back(attempt) or attempt


def too_late(attempt: Attempt, loader: MessageLoader) -> Outcome | None:
    """Return the outcome of an e-mail that was ready when its lease would not outlast its sending.

    It is postponed, and uses up a try: otherwise each claim would end like this one, and hold up
    the mail behind it. ``None`` if only the mail before it was slow; the next claim begins with it.
    """
    batch, took = loader.batch, loader.took
    spare = batch.outlasts_until - batch.claimed_at
    if attempt.mail is not batch.mails[0] and sum(took.values()) <= spare:
        return None
    parts = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in took.items())
    reply = (
        f"Not sent: it was ready {time.monotonic() - batch.claimed_at:.1f} s after its worker had "
        f"claimed it, and must be within {spare:.1f} s. It took: {parts}."
    )
    logger.warning(
        "E-mail %s was ready too late to be sent. It took: %s.", attempt.mail.row.pk, parts
    )
    return judge(attempt, Result(failure=Failure(kind=Kind.TRANSIENT, reply=reply)))


class MessageLoader:
    """Loads what a batch needs in addition to its rows, and builds each message in its turn.

    Few e-mails have attachments and few were tried before: a batch without either costs no query.
    """

    def __init__(self, batch: Batch) -> None:
        rows = [mail.row for mail in batch.mails]
        self.batch = batch
        self.took: dict[str, float] = {}
        """Seconds that each part of preparing the e-mail fetched last has taken."""
        self._using = batch.using
        self._attachments = self._find_attachments(rows) if batch.has_attachments else {}
        self._outcomes = recipient_outcomes(rows, batch.using)
        self._held_back: dict[UUID, dict[int, str]] = {}
        self._left: dict[UUID, int] = {}
        if batch.has_suppressions:
            self._held_back, self._left = suppression.held_back(rows, batch.using)
        self._blobs: dict[UUID, EmailAttachment] = {}
        self._total = 0

    def fetch(self, mail: EmailLog) -> None:
        """Read the attachments of an e-mail, reusing those it shares with the previous one.

        Raises ``DatabaseError``. Afterwards ``message`` needs no database.
        """
        self.took = {}
        wanted = self._attachments.get(mail.pk, [])
        kept = {pk: self._blobs[pk] for pk in wanted if pk in self._blobs}
        missing = [pk for pk in wanted if pk not in kept]
        with self.timed("reading its attachments"):
            if missing:
                kept.update(EmailAttachment.objects.using(self._using).in_bulk(missing))
        self._blobs = kept

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Note in ``took`` how long a part of preparing an e-mail takes."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.took[part] = time.monotonic() - began

    @property
    def has_database(self) -> bool:
        """Whether the database still answers, after it has rejected a statement."""
        return connections[self._using].is_usable()

    def message(self, mail: EmailLog) -> EmailMessage:
        """Build the message of the e-mail fetched last, addressed to its outstanding recipients.

        Raises whatever an unreadable envelope raises.
        """
        self._total = 0
        blobs = {row.digest: row.data for row in self._blobs.values()}
        message = mail.build(blobs)
        if "message-id" not in {name.lower() for name in message.extra_headers}:
            # First, where Django puts its own: the order of the headers stays the same.
            message.extra_headers = {"Message-ID": mail.message_id, **message.extra_headers}
            setattr(message, anymail.ADDED_MESSAGE_ID, True)
        setattr(message, anymail.ID, str(mail.pk))
        everyone = message.recipients()
        self._total = len(everyone)
        outstanding = self.outstanding(mail)
        if len(outstanding) < len(everyone):
            addresses = [everyone[position] for position in outstanding]
            message.recipients = lambda: addresses  # type: ignore[method-assign]
        return message

    def outstanding(self, mail: EmailLog) -> list[int]:
        """Return the positions of the recipients that still have to get the e-mail."""
        outcomes = self._outcomes.get(mail.pk)
        held_back = self.held_back(mail)
        if not (outcomes or held_back):
            return list(range(self._total))
        outcomes = outcomes or dict.fromkeys(range(self._total), "")
        return sorted(
            position
            for position, outcome in outcomes.items()
            if not outcome and position not in held_back
        )

    def held_back(self, mail: EmailLog) -> Mapping[int, str]:
        """Return the recipients of an e-mail on the suppression list, with the reason."""
        return self._held_back.get(mail.pk, {}) if self._held_back else {}

    def is_suppressed(self, mail: EmailLog) -> bool:
        """Return whether every outstanding recipient is on the suppression list."""
        return bool(self.held_back(mail)) and not self._left[mail.pk]

    def is_slowed(self, mail: EmailLog) -> bool:
        """Return whether the server has complained about the e-mail's domain since the claim."""
        return slowed_domains.is_slowed_since(
            mail.transport, mail.domain, self.batch.claimed_at, self._using
        )

    def is_in_doubt(self, mail: EmailLog) -> bool:
        """Return whether an earlier attempt may have been accepted, and nothing shows it yet."""
        rows = EmailLog.objects.using(self._using).filter(pk=mail.pk)
        return bool(mail.attempts) and not rows.surely_not_accepted().exists()

    def was_accepted(self, mail: EmailLog) -> bool:
        """Return whether an earlier attempt was accepted for some of the recipients."""
        return EmailRecipient.Outcome.ACCEPTED in self._outcomes.get(mail.pk, {}).values()

    def _find_attachments(self, mails: Iterable[EmailLog]) -> dict[UUID, list[UUID]]:
        link = EmailLog.attachments.through
        rows = (
            link._default_manager.using(self._using)
            .filter(emaillog_id__in=[mail.pk for mail in mails])
            .values_list("emaillog_id", "emailattachment_id")
        )
        found: dict[UUID, list[UUID]] = defaultdict(list)
        for email_id, attachment_id in rows:
            found[email_id].append(attachment_id)
        return found


def restrict_recipients(message: EmailMessage, tried: list[int]) -> Envelope:
    """Apply ``REDIRECT_ALL_TO`` and ``ALLOWED_RECIPIENTS`` to a message; return its envelope.

    Changes ``message``. ``tried`` are the positions of the addresses in its ``recipients()``. The
    last step before the transport, so that it holds for every row, also for those that came with a
    copy of another site's database.
    """
    settings = conf.get()
    if settings.redirect_all_to is not None:
        _redirect(message, settings.redirect_all_to)
        # The server's replies about these addresses say nothing about the original recipients.
        return Envelope(tried, [])
    if settings.allowed_recipients is None:
        return Envelope(tried, tried)
    barred = {
        position: _BARRED
        for position, address in zip(tried, message.recipients(), strict=False)
        if not is_allowed(address)
    }
    if barred:
        _narrow(message)
    return Envelope(tried, [position for position in tried if position not in barred], barred)


def is_allowed(recipient: object) -> bool:
    """Return whether ``ALLOWED_RECIPIENTS`` allows an address; never for an invalid address."""
    allowed = conf.get().allowed_recipients
    if allowed is None:
        return True
    address = forms.canonical(recipient)
    domain = address.rpartition("@")[2]
    return forms.is_complete(address) and any(
        fnmatchcase(address if "@" in pattern else domain, rules.address_pattern(pattern))
        for pattern in allowed
    )


def _redirect(message: EmailMessage, addresses: Sequence[str]) -> None:
    originals = [parseaddr(str(it))[1] or str(it) for it in message.recipients()]
    names = ", ".join(originals[:_NAMED])
    others = f" and {len(originals) - _NAMED} more" if len(originals) > _NAMED else ""
    prefix = f"[to {names}{others}]"
    if isinstance(message, RawMessage):
        message.prefix_subject(prefix)
        message.remove_headers("resent-")
    message.subject = f"{prefix} {message.subject or ''}"
    for name in list(message.extra_headers):
        if name.lower() in _ADDRESSED_HEADERS or name.lower().startswith("resent-"):
            del message.extra_headers[name]
    if vars(message).pop("esp_extra", None):
        logger.warning(
            "E-mail %s is redirected without its esp_extra, in which recipients could be named.",
            getattr(message, anymail.ID, ""),
        )
    message.to, message.cc, message.bcc = list(addresses), [], []
    _set_recipients(message, list(addresses))


def _narrow(message: EmailMessage) -> None:
    """Remove the recipients that are not allowed, also from the lists that providers read."""
    everyone = message.recipients()
    message.to, message.cc, message.bcc = (
        [address for address in addresses or () if is_allowed(address)]
        for addresses in (message.to, message.cc, message.bcc)
    )
    _set_recipients(message, [address for address in everyone if is_allowed(address)])


def _set_recipients(message: Any, addresses: list[str]) -> None:
    message.recipients = lambda: addresses


class _ReceiverFailed(Exception):  # noqa: N818
    """A receiver of ``before_send`` raised something other than ``Veto``."""


def _build(mail: ClaimedMail, loader: MessageLoader) -> Attempt:
    """Build the attempt; raise ``Veto`` if the site vetoes it, or whatever building raises."""
    with loader.timed("building it"), signals.concerning(mail.row.pk):
        message = loader.message(mail.row)
        instrument.keep_links_whole(message)
        if mail.row.additions:
            instrument.instrument(message, mail.row)
        verp.set_return_address(message, mail.row)
    with loader.timed("the receivers of before_send"), signals.concerning(mail.row.pk):
        _ask_site(mail.row, message)
    # Last, so that no receiver of the site's can bypass it.
    envelope = restrict_recipients(message, loader.outstanding(mail.row))
    return _attempt(mail, message, loader, envelope)


def _attempt(
    mail: ClaimedMail,
    message: EmailMessage,
    loader: MessageLoader,
    envelope: Envelope | None = None,
) -> Attempt:
    tried = loader.outstanding(mail.row)
    return Attempt(
        mail,
        message,
        envelope=envelope or Envelope(tried, tried),
        was_accepted=loader.was_accepted(mail.row),
        held_back=loader.held_back(mail.row),
    )


def _ask_site(mail: EmailLog, message: EmailMessage) -> None:
    """Send ``before_send``; raise ``Veto``, or ``_ReceiverFailed`` if a receiver fails."""
    if not signals.before_send.has_listeners(EmailLog):
        return
    try:
        signals.before_send.send(EmailLog, email=mail, message=message)
    except Veto:
        raise
    except Exception as error:
        logger.exception("A receiver of before_send failed for e-mail %s.", mail.pk)
        raise _ReceiverFailed(f"before_send: {error!r}") from error


def _unreadable(mail: ClaimedMail, loader: MessageLoader, error: Exception) -> Outcome:
    """Return the outcome of an e-mail whose content the database does not return."""
    reply = replies.reply_text(f"{type(error).__name__}: {error}")
    failure = Failure(kind=Kind.TRANSIENT, reply=reply)
    return judge(_attempt(mail, EmailMessage(), loader), Result(failure=failure))


def _failure_of(error: Exception) -> Failure:
    """Return the failure that an error while preparing an e-mail means."""
    if isinstance(error, _ReceiverFailed):
        return Failure(kind=Kind.TRANSIENT, reply=replies.reply_text(str(error)))
    kind = Kind.TRANSIENT if isinstance(error, _PASSING) else Kind.MESSAGE
    return Failure(kind=kind, reply=replies.reply_text(f"{type(error).__name__}: {error}"))


def _hold_back(attempt: Attempt) -> Outcome | None:
    """Return the outcome of an attempt that may not be made now; ``None`` if it may."""
    if attempt.envelope.is_empty:
        barred = next(iter(attempt.envelope.barred.values()))
        return judge(attempt, Result(failure=barred))
    row = attempt.mail.row
    refusal = rate_limits.take(row.transport, attempt.message.recipients(), row.priority)
    if refusal is None:
        return None
    # Due again at once under a limit on all mail: the claim reserves the budget for it.
    delay = refusal.seconds if refusal.is_of_domain else 0.0
    decision = Decision(moves=(lifecycle.RELEASE,), delay=delay)
    return Outcome(row, None, decision, ends_batch=not refusal.is_of_domain)


def _expired(mail: ClaimedMail, loader: MessageLoader) -> Outcome:
    if loader.is_in_doubt(mail.row):
        return Outcome(mail.row, None, Decision(moves=(lifecycle.LOSE,), failure=_IN_DOUBT))
    if not loader.was_accepted(mail.row):
        return Outcome(mail.row, None, Decision(moves=(lifecycle.EXPIRE,)))
    refused = dict.fromkeys(loader.outstanding(mail.row), _EXPIRED)
    decision = Decision(moves=(lifecycle.SUCCEED,), failure=_EXPIRED, refused=refused)
    return Outcome(mail.row, None, decision, held_back=loader.held_back(mail.row))


def _suppressed(mail: ClaimedMail, loader: MessageLoader) -> Outcome:
    reasons = ", ".join(sorted(set(loader.held_back(mail.row).values())))
    failure = Failure(kind=Kind.SUPPRESSED, reply=f"On the suppression list: {reasons}.")
    return _unsent(mail, loader, failure)


def _unsent(mail: ClaimedMail, loader: MessageLoader, failure: Failure) -> Outcome:
    """Return the outcome of an e-mail that is not sent to its outstanding recipients at all."""
    reply, held_back = replies.reply_text(failure.reply), loader.held_back(mail.row)
    if loader.was_accepted(mail.row):
        held_back = {**dict.fromkeys(loader.outstanding(mail.row), reply), **held_back}
        decision = Decision(moves=(lifecycle.SUCCEED,))
    elif loader.is_in_doubt(mail.row):  # "suppressed" would say that nobody has got it
        moves, held_back = (lifecycle.LOSE, lifecycle.WRITE_OFF), {}
        decision = Decision(moves=moves, failure=Failure(kind=Kind.UNKNOWN, reply=reply))
    else:
        decision = Decision(moves=(lifecycle.SUPPRESS,), failure=replace(failure, reply=reply))
    return Outcome(mail.row, None, decision, held_back=held_back)
