"""Prepares each mail of a batch: loads its message, and settles what is not to be sent."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from email.utils import getaddresses, parseaddr
from fnmatch import fnmatchcase
from typing import Any
from uuid import UUID

from django.core.mail import EmailMessage

from django_epica_mail import conf, lifecycle, messages, retry, signals, suppression
from django_epica_mail.delivery import rate_limits
from django_epica_mail.delivery.claim import Batch
from django_epica_mail.delivery.outcome import Envelope, Outcome, Try, judge
from django_epica_mail.exceptions import MissingKey, Veto
from django_epica_mail.messages import RawMessage
from django_epica_mail.models import EmailAttachment, EmailLog, EmailRecipient
from django_epica_mail.retry import Decision, Failure, Kind, Result
from django_epica_mail.tracking import instrument
from django_epica_mail.transports import anymail

logger = logging.getLogger(__name__)


def recipient_outcomes(mails: Iterable[EmailLog], using: str) -> dict[UUID, dict[int, str]]:
    """Return, for mails tried before, what is known of each recipient, by mail and position."""
    tried_before = [mail.pk for mail in mails if mail.attempts]
    found: dict[UUID, dict[int, str]] = defaultdict(dict)
    if tried_before:
        rows = EmailRecipient.objects.using(using).filter(email_id__in=tried_before)
        for row in rows.only("email_id", "position", "outcome"):
            found[row.email_id][row.position] = row.outcome
    return found


class MessageLoader:
    """Loads what a batch needs beside its rows, and builds each message when its turn comes.

    Few mails have attachments, and few were tried before: a batch without either costs one query.
    """

    def __init__(self, batch: Batch) -> None:
        self._using = batch.using
        self._attachments = self._find_attachments(batch)
        self._outcomes = recipient_outcomes(batch.mails, batch.using)
        self._held_back: dict[UUID, dict[int, str]] = {}
        self._left: dict[UUID, int] = {}
        if any(getattr(mail, "is_guarded", False) for mail in batch.mails):
            self._held_back, self._left = suppression.held_back(batch.mails, batch.using)
        self._blobs: dict[UUID, EmailAttachment] = {}
        self._total = 0

    def fetch(self, mail: EmailLog) -> None:
        """Read the attachments of a mail, keeping those it shares with the mail before it.

        Raises ``DatabaseError``; afterwards ``message`` needs no database.
        """
        wanted = self._attachments.get(mail.pk, [])
        kept = {pk: self._blobs[pk] for pk in wanted if pk in self._blobs}
        missing = [pk for pk in wanted if pk not in kept]
        if missing:
            kept.update(EmailAttachment.objects.using(self._using).in_bulk(missing))
        self._blobs = kept

    def message(self, mail: EmailLog) -> EmailMessage:
        """Build the message of the mail fetched last, for the recipients not yet done with.

        Raises whatever an unreadable envelope raises.
        """
        self._total = 0
        blobs = {row.digest: row.data for row in self._blobs.values()}
        message = messages.load(mail.envelope, blobs)
        if "message-id" not in {name.lower() for name in message.extra_headers}:
            # First, for there Django puts its own: the order of the headers stays the same.
            message.extra_headers = {"Message-ID": mail.message_id, **message.extra_headers}
        setattr(message, anymail.ID, str(mail.pk))
        everyone = message.recipients()
        self._total = len(everyone)
        outstanding = self.outstanding(mail)
        if len(outstanding) < len(everyone):
            addresses = [everyone[position] for position in outstanding]
            message.recipients = lambda: addresses  # type: ignore[method-assign]
        return message

    def outstanding(self, mail: EmailLog) -> list[int]:
        """Return the positions of the recipients that a try of this mail concerns."""
        outcomes = self._outcomes.get(mail.pk) or dict.fromkeys(range(self._total), "")
        held_back = self.held_back(mail)
        return sorted(
            position
            for position, outcome in outcomes.items()
            if not outcome and position not in held_back
        )

    def held_back(self, mail: EmailLog) -> Mapping[int, str]:
        """Return the recipients that the suppression list keeps from a mail, and why."""
        return self._held_back.get(mail.pk, {})

    def is_suppressed(self, mail: EmailLog) -> bool:
        """Tell whether the suppression list keeps a mail from everyone it was left to try for."""
        return bool(self.held_back(mail)) and not self._left[mail.pk]

    def was_accepted(self, mail: EmailLog) -> bool:
        """Tell whether an earlier try was accepted for some of the recipients."""
        return EmailRecipient.Outcome.ACCEPTED in self._outcomes.get(mail.pk, {}).values()

    def _find_attachments(self, batch: Batch) -> dict[UUID, list[UUID]]:
        link = EmailLog.attachments.through
        rows = (
            link._default_manager.using(self._using)
            .filter(emaillog_id__in=[mail.pk for mail in batch.mails])
            .values_list("emaillog_id", "emailattachment_id")
        )
        found: dict[UUID, list[UUID]] = defaultdict(list)
        for email_id, attachment_id in rows:
            found[email_id].append(attachment_id)
        return found


_NAMED = 3
"""How many of the true recipients the subject of a redirected mail names."""
_BARRED = Failure(
    kind=Kind.PERMANENT,
    reply="Not sent: EPICA_MAIL['ALLOWED_RECIPIENTS'] does not allow this address.",
)


def restrict_recipients(message: EmailMessage, tried: list[int]) -> Envelope:
    """Make a message fit to leave this site, and return whom it is still for.

    ``message`` is changed. ``tried`` are the positions of the addresses in its ``recipients()``.
    Comes last before the transport, so that it holds for every row, however it came here: with a
    copy of another site's database, for one.
    """
    settings = conf.get()
    if settings.redirect_all_to is not None:
        _redirect(message, settings.redirect_all_to)
        # What the server says of these addresses says nothing of the true recipients.
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
    """Tell whether ``ALLOWED_RECIPIENTS`` lets mail go to an address; what is none, it does not."""
    allowed = conf.get().allowed_recipients
    if allowed is None:
        return True
    found = getaddresses([str(recipient)])
    address = found[0][1].lower() if len(found) == 1 else ""  # of several, one may be anybody's
    local, _, domain = address.rpartition("@")
    return bool(local and domain) and any(
        fnmatchcase(address if "@" in pattern else domain, pattern.lower()) for pattern in allowed
    )


def _redirect(message: EmailMessage, addresses: Sequence[str]) -> None:
    meant = [parseaddr(str(it))[1] or str(it) for it in message.recipients()]
    names = ", ".join(meant[:_NAMED])
    others = f" and {len(meant) - _NAMED} more" if len(meant) > _NAMED else ""
    words = f"[to {names}{others}]"
    if isinstance(message, RawMessage):
        message.prefix_subject(words)
    message.subject = f"{words} {message.subject}"
    for name in [name for name in message.extra_headers if name.lower() in ("to", "cc", "bcc")]:
        del message.extra_headers[name]
    message.to, message.cc, message.bcc = list(addresses), [], []
    _set_recipients(message, list(addresses))


def _narrow(message: EmailMessage) -> None:
    """Leave a message those recipients that are allowed, in the lists that providers read too."""
    everyone = message.recipients()
    message.to, message.cc, message.bcc = (
        [address for address in addresses or () if is_allowed(address)]
        for addresses in (message.to, message.cc, message.bcc)
    )
    _set_recipients(message, [address for address in everyone if is_allowed(address)])


def _set_recipients(message: Any, addresses: list[str]) -> None:
    message.recipients = lambda: addresses


def prepare(mail: EmailLog, contents: MessageLoader) -> Try | Outcome:
    """Build the message of a mail, unless it is settled without a word to the transport."""
    if getattr(mail, "is_expired", False):
        return Outcome(mail, None, Decision(moves=(lifecycle.EXPIRE,)))
    if contents.is_suppressed(mail):
        return _suppressed(mail, contents)
    try:
        message = contents.message(mail)
        if mail.additions:
            instrument.instrument(message, mail)
        objection = _ask_site(mail, message)
        # Last, so that nothing of the site's own can lead a mail past its guards.
        handed = None if objection else restrict_recipients(message, contents.outstanding(mail))
    except Exception as error:  # noqa: BLE001 - one bad message never stops another
        reply = retry.reply_text(f"{type(error).__name__}: {error}")
        # A key that is missing here may be one that the site, or this worker, is yet to be given.
        kind = Kind.TRANSIENT if isinstance(error, MissingKey) else Kind.MESSAGE
        return judge(
            _try(mail, EmailMessage(), contents), Result(failure=Failure(kind=kind, reply=reply))
        )
    ready = _try(mail, message, contents, handed)
    if objection is not None and objection.kind is Kind.VETOED:
        return _unsent(mail, contents, objection)
    if objection is not None:
        return judge(ready, Result(failure=objection))
    if ready.handed.is_empty:
        return judge(ready, Result(failure=next(iter(ready.handed.barred.values()))))
    refusal = rate_limits.take(mail.transport, message.recipients())
    if refusal is not None:
        decision = Decision(moves=(lifecycle.RELEASE,), delay=refusal.seconds)
        return Outcome(mail, None, decision, ends_batch=not refusal.is_of_domain)
    return ready


def _try(
    mail: EmailLog, message: EmailMessage, contents: MessageLoader, handed: Envelope | None = None
) -> Try:
    tried = contents.outstanding(mail)
    return Try(
        mail,
        message,
        handed=handed or Envelope(tried, tried),
        was_accepted=contents.was_accepted(mail),
        held_back=contents.held_back(mail),
    )


def _suppressed(mail: EmailLog, contents: MessageLoader) -> Outcome:
    """Return the end of a mail that the suppression list leaves nobody to be sent to."""
    reasons = ", ".join(sorted(set(contents.held_back(mail).values())))
    failure = Failure(kind=Kind.SUPPRESSED, reply=f"On the suppression list: {reasons}.")
    return _unsent(mail, contents, failure)


def _unsent(mail: EmailLog, contents: MessageLoader, failure: Failure) -> Outcome:
    """Return the end of a mail that is not sent, but to those who accepted it before."""
    if contents.was_accepted(mail):
        decision = Decision(moves=(lifecycle.SUCCEED,))
    else:
        decision = Decision(moves=(lifecycle.SUPPRESS,), failure=failure)
    return Outcome(mail, None, decision, held_back=contents.held_back(mail))


def _ask_site(mail: EmailLog, message: EmailMessage) -> Failure | None:
    """Return why the site does not want a mail sent, or not now; ``None`` if it does not mind."""
    if not signals.before_send.has_listeners(EmailLog):
        return None
    try:
        signals.before_send.send(EmailLog, email=mail, message=message)
    except Veto as veto:
        return Failure(kind=Kind.VETOED, reply=retry.reply_text(veto.reason))
    except Exception as error:
        logger.exception("A receiver of before_send failed for e-mail %s.", mail.pk)
        return Failure(kind=Kind.TRANSIENT, reply=retry.reply_text(f"before_send: {error!r}"))
    return None
