"""Turns a message into rows: checked and routed, but not yet inserted."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.core.mail import EmailMessage
from django.core.mail.utils import DNS_NAME
from django.db import connections, router
from django.utils import timezone

from django_epica_mail import clock, conf, messages, routing
from django_epica_mail.exceptions import InvalidMessage, as_invalid_message
from django_epica_mail.messages import (
    Blob,
    Rules,
    StoredMessage,
    addresses,
    bounds,
    codec,
    encryption,
)
from django_epica_mail.models import EmailAttachment, EmailBatch, EmailLog, EmailRecipient, fields
from django_epica_mail.queueing import names
from django_epica_mail.routing import Options
from django_epica_mail.rules import shown
from django_epica_mail.rules.routes import Facts
from django_epica_mail.tracking import links
from django_epica_mail.transports import config as transports

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Draft:
    """The rows of a checked message."""

    log: EmailLog
    recipients: list[EmailRecipient]
    blobs: tuple[Blob, ...]
    is_due: bool
    """Whether the mail may be sent as soon as it is committed."""


def draft(
    message: EmailMessage,
    options: Options,
    *,
    of_celery: Mapping[str, Any],
    bulk: bool = False,
    batch: EmailBatch | None = None,
    called_at: datetime | None = None,
) -> Draft:
    """Return the rows of a message.

    ``of_celery`` is the result of ``celery_config.site_route``; ``called_at`` is when the site
    asked for the mail, if that is not now. Raises ``ValueError`` or
    ``TypeError`` for a message that cannot be sent or a transport that is not configured,
    ``UnstorableMessage`` for one that cannot be
    stored without loss, and ``ImproperlyConfigured`` for one that needs an encryption key that is
    not set, or that carries links the site does not serve.
    """
    with as_invalid_message("The message"):
        return _draft(
            message, options, of_celery=of_celery, bulk=bulk, batch=batch, called_at=called_at
        )


def _draft(
    message: EmailMessage,
    options: Options,
    *,
    of_celery: Mapping[str, Any],
    bulk: bool,
    batch: EmailBatch | None,
    called_at: datetime | None,
) -> Draft:
    if options.transport is not None:
        names.check_transport(options.transport)
    count = len(list(message.recipients()))  # which a class may return as a generator
    if not count:
        raise ValueError("The message has no recipients: add at least one to to, cc or bcc.")
    check_recipients(count)
    messages.check_injection(message)
    # EmailLog gets its id on creation; the other rows refer to it.
    log = EmailLog.of(batch_id=batch.pk if batch else None)
    recipients = list(_recipients(message, log))
    log.domain = addresses.common_domain(it.address for it in recipients)
    facts = Facts(
        category=options.category or "",
        recipients=[recipient.address for recipient in recipients],
        sender=_address(message.from_email or ""),
        headers={name: str(value) for name, value in message.extra_headers.items()},
        template=options.template or "",
        is_bulk=bulk,
    )
    _route(log, routing.decide(options, facts, conf.get(), of_celery), options, called_at)
    stored = _store(message, (log.transport, *log.fallbacks))
    if len(recipients) > 1:
        log.additions = ""  # links identify one recipient; in shared mail, anyone could use them
    elif log.additions and stored.is_raw:
        _leave_out_additions(log, options)
    elif "unsubscribe" in log.additions or (log.additions and not transports.tracks(log.transport)):
        links.check()
    if log.additions:
        check_html(message)
    log.envelope = _sealed(stored.envelope, log)
    log.category = options.category or ""
    log.subject = "" if log.keep_content == "never" else storable(message.subject)
    log.from_email = storable(message.from_email)
    log.message_id = storable(stored.message_id)[:255] or f"<{log.id}@{DNS_NAME}>"
    log.idempotency_key = _storable_key(options.idempotency_key)
    log.store_result = bool(options.store_result)
    is_due = options.send_at is None or options.send_at <= timezone.now()
    return Draft(log, recipients, stored.blobs, is_due)


def _storable_key(key: str | None) -> str | None:
    """Return an idempotency key; raise ``ValueError`` if its database would store another one."""
    if fields.storable(key, connections[router.db_for_write(EmailLog)]) != key:
        raise ValueError(
            "idempotency_key must have only characters that the database can store (see "
            f"epica_mail.W010), such as ASCII; it is {shown(key)}."
        )
    return key


def _store(message: EmailMessage, aliases: Sequence[str]) -> StoredMessage:
    """Return a message as it is stored, checked by the rules of its transports."""
    rules = Rules.SMTP
    if not messages.is_simple(message):
        rules = transports.rules_of(aliases, message)
        messages.check(message, rules)
    stored = messages.dump(message, rules, lambda: transports.read_attributes(aliases))
    check_size(stored.size)
    return stored


def _leave_out_additions(log: EmailLog, options: Options) -> None:
    """Add nothing to a mail that builds its own MIME, which may be signed; say so.

    Raises ``InvalidMessage`` if the call itself asks for an addition.
    """
    asked = [name for name in routing.ADDITIONS.values() if getattr(options, name)]
    if asked:
        raise InvalidMessage(
            f"{asked[0]} cannot be added to a message that builds its own MIME in message(): add "
            "the headers or links there (django_epica_mail.tracking.links.unsubscribe_url makes "
            "one), or leave the option out."
        )
    logger.warning(
        "E-mail %s builds its own MIME in message(), so it is sent without what its rule in ROUTES "
        "adds: %s.",
        log.pk,
        log.additions,
    )
    log.additions = ""


def _sealed(envelope: str, log: EmailLog) -> str:
    """Return the message as its row stores it: with its terms, if these are encrypted with it."""
    if encryption.is_on():
        envelope = codec.with_terms(envelope, messages.Terms(log.additions, log.keep_content))
    return encryption.seal(envelope, encryption.envelope_of(log.pk))


MAX_HTML = 2 * 1024 * 1024
"""Characters of HTML whose links are rewritten; mail clients show some 100,000."""


def check_html(message: EmailMessage) -> None:
    """Raise ``InvalidMessage`` for HTML that is too long to have its links rewritten."""
    bodies = [(message.body, f"text/{message.content_subtype}")]
    for content, mimetype in (*bodies, *(getattr(message, "alternatives", None) or ())):
        if mimetype == "text/html":
            bounds.check_length("HTML of a mail with tracked links", content, MAX_HTML)


def check_recipients(count: int) -> None:
    """Raise ``InvalidMessage`` for more recipients than ``MAX_RECIPIENTS``."""
    most = conf.get().max_recipients
    if most is not None and count > most:
        raise InvalidMessage(
            f"The message has {count} recipients, but EPICA_MAIL['MAX_RECIPIENTS'] allows {most}: "
            "send each recipient a separate e-mail (enqueue_many, send_bulk_templated_emails), or "
            "raise the limit."
        )


def check_size(size: int) -> None:
    """Raise ``InvalidMessage`` for a stored message larger than ``MAX_MESSAGE_BYTES``."""
    most = conf.get().max_message_bytes
    if most is not None and size > most:
        raise InvalidMessage(
            f"The message is {size} bytes, but EPICA_MAIL['MAX_MESSAGE_BYTES'] allows {most}: "
            "link to large files instead of attaching them, or raise the limit."
        )


def _route(
    log: EmailLog, route: routing.Route, options: Options, called_at: datetime | None
) -> None:
    """Set the row's queue, transports, times and policies."""
    first, *others = route.transports or (transports.default_alias(),)
    give_up_after = timedelta(seconds=conf.get().give_up_after)
    if options.queue is not None:
        names.warn_of_unknown_queue(options.queue)
    send_at = routing.in_utc(options.send_at) if options.send_at else None
    log.queue = route.queue
    log.transport, log.fallbacks = first, others
    log.priority = log.pending = route.priority
    log.created_at = clock.now()
    log.due_at = send_at or clock.now()
    log.give_up_at = send_at + give_up_after if send_at else clock.now(give_up_after)
    log.expires_at = options.expires_at
    if options.expires_at is None and route.expires_after is not None:
        since = send_at or called_at
        log.expires_at = since + route.expires_after if since else clock.now(route.expires_after)
    log.on_unknown = route.on_unknown
    log.additions = " ".join(route.additions)
    log.keep_content = _checked_keep_content(route.keep_content)
    log.max_retries = route.max_retries
    log.delays = route.retry_delays


def _checked_keep_content(keep_content: str) -> str:
    """Return ``keep_content``; raise ``ImproperlyConfigured`` if it needs a key that is not set."""
    if keep_content == "never" and not encryption.is_on():
        raise ImproperlyConfigured(
            "keep_content='never' stores the e-mail encrypted until it is sent, but no key is set: "
            "set EPICA_MAIL['ENCRYPTION_KEYS'], or choose 'until_sent'."
        )
    return keep_content


def _recipients(message: EmailMessage, log: EmailLog) -> Iterator[EmailRecipient]:
    kinds = (
        [EmailRecipient.Kind.TO] * sum(map(bool, message.to))
        + [EmailRecipient.Kind.CC] * sum(map(bool, message.cc))
        + [EmailRecipient.Kind.BCC] * sum(map(bool, message.bcc))
    )
    # A message class may return more recipients than its fields name: no header shows them.
    kinds_and_more = itertools.chain(kinds, itertools.repeat(EmailRecipient.Kind.BCC))
    for position, (recipient, kind) in enumerate(
        zip(message.recipients(), kinds_and_more, strict=False)
    ):
        if addresses.resembles_another(recipient):
            raise InvalidMessage(
                f"The address {str(recipient)!a} has a character before the @ that looks like "
                "another or like none, so that a bounce could be taken for that of "
                f"{addresses.canonical(recipient)!r}: write it without."
            )
        yield EmailRecipient.of(
            email_id=log.pk, position=position, kind=kind, address=_address(recipient)
        )


def _address(recipient: object) -> str:
    return storable(addresses.canonical(recipient))


def attachment(blob: Blob) -> EmailAttachment:
    """Return the row of an attachment; all mails with the same attachment share it."""
    return EmailAttachment(
        digest=blob.digest,
        filename=storable(blob.filename),
        mimetype=storable(blob.mimetype)[:255],
        size=len(blob.content),
        content=encryption.seal_bytes(blob.content, encryption.attachment_of(blob.digest)),
    )


def storable(text: object) -> str:
    """Return text without NULs and lone surrogates, which some databases reject; ``""`` for None.

    The envelope keeps the original.
    """
    text = "" if text is None else text
    return str(text).replace("\0", "").encode("utf-8", "replace").decode()
