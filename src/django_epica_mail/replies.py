"""Says what a reply or an exception of a transport means, and cleans its text."""

from __future__ import annotations

import base64
import re
import smtplib
import socket
import unicodedata
from collections.abc import Iterable
from dataclasses import replace

from django.core.exceptions import ImproperlyConfigured

from django_epica_mail.retry import Failure, Kind, Scope, Stage, mildest

REPLY_LENGTH = 2000
"""How many characters of a server's reply are kept."""

_MIN_SECRET_LENGTH = 3
"""Characters. Anything shorter would also be found by chance."""

_ESCAPE_SEQUENCE = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?"  # control sequences, such as colours
    r"|(?:\x1b[PX^_\]]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?"  # strings
    r"|\x1b[ -/]*[0-~]?"
)

_LAST_WORD = re.compile(r"(?<![^\s<>])[^\s<>]+\Z")

_THROTTLED = re.compile(
    r"\brate\b|too many|too much|throttl|slow down|unexpected volume"
    r"|\b(?:daily|hourly|sending|outgoing|message) (?:(?!size)\w+ )?(?:quota|limit)\b",
    re.IGNORECASE,
)

_QUOTA = re.compile(r"quota|\b(?:daily|hourly|sending|outgoing)\b", re.IGNORECASE)
"""Words for what an account may send in all, whatever the recipients' domains."""

_DOMAIN_CODES = (421, 450, 451)
_DOMAIN_DETAIL = "7."
"""How servers answer a recipient or a content when they get mail too fast for one domain, such as
Gmail's 421 4.7.28, Yahoo's 421 4.7.0 [TSS04] and Outlook's 451 4.7.650."""

_ENHANCED = re.compile(r"[45]\.(\d{1,3}\.\d{1,3})\b")

_ENHANCED_ANYWHERE = re.compile(r"(?<![\d.])([245]\.[0-7]\.\d{1,3})(?!\.?\d)")
"""An enhanced status code (RFC 3463) in text, but not four numbers, which are an IP address,
and no version of a program, such as 4.94.2."""
_UNSPECIFIC = re.compile(r"\d\.(0\.0|1\.0|5\.0)")
"""Codes that say no more than the first digit; the words then count."""
_NO_SUCH_ADDRESS = re.compile(r"5\.(1\.([1236]|10)|2\.1|4\.(4|310))")
"""Codes of an address or domain that does not exist (any more): RFC 3463; 5.1.10 by RFC 7505 and
Exchange, 5.4.310 by Exchange Online."""
_REFUSING_CODE = re.compile(r"(?<![\d.])5(50|51|53|54)(?![\d.])")
_NO_SUCH_WORDS = (
    *("user unknown", "unknown user", "no such user", "user not found", "unrouteable address"),
    *("no such mailbox", "mailbox not found", "no mailbox here", "recipient not found"),
    *("recipient unknown", "unknown recipient", "no such recipient", "no such address"),
    *("user doesn't have", "user does not exist", "account does not exist"),
    *("address does not exist", "mailbox does not exist", "recipient does not exist"),
    *("invalid recipient", "invalid mailbox", "address unknown", "account has been disabled"),
)
"""Words of servers that give no enhanced code for an address that does not exist."""

_LIMIT_CODES = (452, 552)
_LIMIT_DETAIL = "5.3"
"""What a server answers to RCPT once it takes no more recipients in this transaction (RFC 5321,
section 4.5.3.1.10; RFC 3463: X.5.3)."""

_FAULTS = (
    # Codes, enhanced codes without the first digit, and what the reply means; the first row that
    # matches counts. RFC 5321, section 4.2; RFC 3463 and the registry of RFC 5248.
    ("...", r"7\.(8|9|10|11|12)", Kind.OUTAGE, Scope.CREDENTIALS),  # credentials or encryption
    ("...", r"2\.2", Kind.TRANSIENT, Scope.RECIPIENT),  # mailbox full; its owner may make room
    ("...", r"3\.2", Kind.OUTAGE, Scope.SERVER),  # system not accepting messages
    ("...", r"4\.5", Kind.THROTTLED, Scope.SERVER),  # system congested
    ("530", "", Kind.OUTAGE, Scope.CREDENTIALS),  # RFC 4954, section 6; RFC 3207, section 4
    ("421", r"[12]\.\d+", Kind.TRANSIENT, Scope.RECIPIENT),
    ("421", r"[67]\.\d+", Kind.TRANSIENT, Scope.MAIL),  # such as Gmail's "suspicious content"
    ("421", "", Kind.TRANSIENT, Scope.SERVER),
    ("5..", r"1\.[78]", Kind.PERMANENT, Scope.SENDER),
    ("5..", r"[12]\.\d+", Kind.PERMANENT, Scope.RECIPIENT),
    ("5..", "", Kind.PERMANENT, Scope.MAIL),
    ("", "", Kind.TRANSIENT, Scope.MAIL),
)

# Raised when a message or its addresses cannot be built, or need what the server does not support.
_UNSENDABLE = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    RecursionError,
    OverflowError,
    smtplib.SMTPNotSupportedError,
)

_OF_CONNECTING = (
    ImproperlyConfigured,
    smtplib.SMTPAuthenticationError,
    smtplib.SMTPConnectError,
    smtplib.SMTPHeloError,
)
"""Raised before any mail is named, also by a backend that connects as it sends."""


def classify_reply(code: int, words: bytes | str) -> Failure:
    """Classify an SMTP reply to MAIL, RCPT, DATA or the content.

    ``_FAULTS`` decides, except that a 4yz reply that speaks of a rate is throttling. smtplib
    returns a code of 0 or less for a line that is not a reply.
    """
    text = reply_text(words)
    enhanced = _ENHANCED.match(text)
    kind, scope = _fault(code, enhanced[1] if enhanced else "")
    is_full_mailbox = enhanced is not None and enhanced[1] == "2.2"
    if 400 <= code < 500 and _THROTTLED.search(text) and not is_full_mailbox:
        kind = Kind.THROTTLED
        scope = _throttled_scope(code, enhanced[1] if enhanced else "", text)
    return Failure(kind=kind, code=code if code > 0 else None, reply=text, scope=scope)


def _throttled_scope(code: int, enhanced: str, text: str) -> Scope:
    if enhanced[:2] in ("1.", "2."):
        return Scope.RECIPIENT
    is_of_domain = code in _DOMAIN_CODES and enhanced.startswith(_DOMAIN_DETAIL)
    return Scope.DOMAIN if is_of_domain and not _QUOTA.search(text) else Scope.SERVER


def _fault(code: int, enhanced: str) -> tuple[Kind, Scope]:
    return next(
        (kind, scope)
        for codes, details, kind, scope in _FAULTS
        if (not codes or re.fullmatch(codes, str(code)))
        and (not details or re.fullmatch(details, enhanced))
    )


def enhanced_code(code: int | None, text: str) -> str | None:
    """Return the enhanced status code at the start of a reply's text, such as ``"5.1.1"``.

    ``None`` if there is none, or if its class is not that of the reply ``code`` (RFC 2034, section
    4).
    """
    found = _ENHANCED.match(text)
    is_of_reply = found is not None and code is not None and found[0][0] == str(code)[0]
    return found[0] if found is not None and is_of_reply else None


def is_positive(code: int) -> bool:
    """Return whether a reply code means that a command was carried out (RFC 5321, 4.2.1)."""
    return code // 100 == 2


def says_no_such_address(text: str) -> bool:
    """Return whether a refusal says that the address does not exist, so that none will reach it.

    ``text`` is a reply, or a status followed or preceded by one. Its first specific enhanced code
    decides; without any, a 550, 551, 553 or 554 beside words for it. In doubt it is not so: sending
    once more does less harm than never sending again.
    """
    text = text[: 2 * REPLY_LENGTH]
    for code in _ENHANCED_ANYWHERE.findall(text):
        if not _UNSPECIFIC.fullmatch(code):
            return _NO_SUCH_ADDRESS.fullmatch(code) is not None
    words = text.lower()
    return _REFUSING_CODE.search(text) is not None and any(it in words for it in _NO_SUCH_WORDS)


def classify_recipients(
    replies: Iterable[tuple[int, bytes]],
) -> tuple[dict[int, Failure], frozenset[int]]:
    """Return the refusals among the replies to RCPT by position, and which may be no verdict.

    452, 552 and X.5.3 after a recipient was accepted are a limit of the transaction (RFC 5321,
    section 4.5.3.1.10). The same reply is a verdict, such as a full mailbox, if nobody was
    accepted before.
    """
    refused: dict[int, Failure] = {}
    limited = set()
    is_any_accepted = False
    for position, (code, words) in enumerate(replies):
        if is_positive(code):
            is_any_accepted = True
            continue
        failure = classify_reply(code, words)
        enhanced = _ENHANCED.match(failure.reply)
        is_limit = code in _LIMIT_CODES or bool(enhanced and enhanced[1] == _LIMIT_DETAIL)
        if is_any_accepted and is_limit:
            limited.add(position)
            if failure.kind is Kind.PERMANENT:
                failure = replace(failure, kind=Kind.TRANSIENT)
        refused[position] = failure
    return refused, frozenset(limited)


def classify(error: Exception, stage: Stage) -> Failure:
    """Classify an exception from a transport, given how far the dialogue had come."""
    if stage is Stage.UNSEEN and isinstance(error, _OF_CONNECTING):
        stage = Stage.CONNECT
    if isinstance(error, smtplib.SMTPRecipientsRefused):
        return mildest(classify_reply(*reply) for reply in error.recipients.values())
    if isinstance(error, smtplib.SMTPResponseException) and _is_verdict(error.smtp_code, stage):
        failure = classify_reply(error.smtp_code, error.smtp_error)
        in_session = stage is not Stage.CONNECT or failure.kind is Kind.THROTTLED
        is_early = stage is Stage.CONNECT or isinstance(error, smtplib.SMTPSenderRefused)
        if is_early and failure.scope is Scope.DOMAIN:
            failure = replace(failure, scope=Scope.SERVER)  # before any recipient was named
        if in_session:
            return failure
        is_login = isinstance(error, smtplib.SMTPAuthenticationError)
        scope = Scope.CREDENTIALS if is_login else Scope.SERVER
        return replace(failure, kind=Kind.OUTAGE, scope=scope)
    kind = _kind_without_reply(error, stage)
    return Failure(
        kind=kind,
        reply=reply_text(f"{type(error).__name__}: {error}"),
        scope=Scope.SERVER if kind is Kind.OUTAGE else Scope.MAIL,
    )


def _is_verdict(code: int, stage: Stage) -> bool:
    """Return whether a reply code settles what an error means.

    After the content only a refusal does: other codes leave open whether the mail was accepted.
    """
    return 400 <= code < 600 if stage >= Stage.ANSWERED else code > 0


def _kind_without_reply(error: Exception, stage: Stage) -> Kind:
    if stage is Stage.CONNECT:
        return Kind.OUTAGE
    if stage is Stage.ENVELOPE:
        # Anything else, such as a time limit of the site, may pass.
        return Kind.MESSAGE if isinstance(error, _UNSENDABLE) else Kind.TRANSIENT
    if stage is Stage.UNSEEN and isinstance(error, (ConnectionRefusedError, socket.gaierror)):
        return Kind.OUTAGE
    return Kind.UNKNOWN


def reply_text(words: bytes | str) -> str:
    """Return the text of a server or an exception as one line, safe to store and to show.

    It is cut to ``REPLY_LENGTH``. Terminal escape sequences (ECMA-48) and control and format
    characters, among them those that reverse the direction of writing, are removed; line breaks
    become spaces; a lone surrogate becomes a question mark.
    """
    bounded = words[: 4 * REPLY_LENGTH]
    text = bounded.decode("utf-8", "replace") if isinstance(bounded, bytes) else str(bounded)
    if text.isascii() and text.isprintable():  # as nearly all are: nothing is to be removed
        return text.strip()[:REPLY_LENGTH]
    kept = map(_shown, _ESCAPE_SEQUENCE.sub("", text))
    return "".join(kept).strip()[:REPLY_LENGTH].encode("utf-8", "replace").decode()


def without_addresses(text: str) -> str:
    """Return a reply with ``…`` before each ``@``, for those who may not see whom mail is to."""
    *before, rest = text.split("@")
    return "@".join([*map(_without_local_part, before), rest])


def _without_local_part(text: str) -> str:
    """Return text that an at sign follows with ``…`` for the local part at its end.

    One in quotation marks may contain spaces and such marks (RFC 5321, section 4.1.2).
    """
    first = text.find('"')
    if text.endswith('"') and first < len(text) - 1:
        return f"{text[:first]}…"
    return _LAST_WORD.sub("…", text)


def secrets_in(response: str) -> set[bytes]:
    """Return a response of an AUTH dialogue, its parts, and the forms in which they are sent."""
    parts = {response, *re.split(r"[\0\x01]|auth=Bearer |user=", response)}
    plain = {part.encode() for part in parts if len(part) >= _MIN_SECRET_LENGTH}
    return plain | {base64.b64encode(part) for part in plain}


def without_secrets(words: bytes, secrets: Iterable[bytes]) -> bytes:
    """Return a reply with ``***`` for each secret in it."""
    for secret in sorted(secrets, key=len, reverse=True):
        words = words.replace(secret, b"***")
    return words


def _shown(character: str) -> str:
    if character.isspace():
        return " "
    return "" if unicodedata.category(character) in ("Cc", "Cf") else character
