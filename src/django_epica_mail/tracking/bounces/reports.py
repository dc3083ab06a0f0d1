"""Understands what comes back by mail: bounces, complaints and automatic replies.

Whoever knows an address of the mailbox can write to it, so each step here is bounded and linear in
what it reads. Python's own parser is not used for the body: it compares every line with the
boundary of every enclosing part, and recurses into what is nested.
"""

from __future__ import annotations

import binascii
import contextlib
import quopri
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from email.message import Message
from email.utils import getaddresses, parsedate_to_datetime
from itertools import islice

from django.utils import timezone

from django_epica_mail.messages.addresses import LENGTH
from django_epica_mail.models import EmailEvent
from django_epica_mail.replies import reply_text

Kind = EmailEvent.Kind

MAX_BYTES = 1 << 20
"""Bytes of a report that are looked at. What a report says comes before the mail it returns."""

MAX_RECIPIENTS = 100
"""Recipients of one report that are looked at."""

_MAX_DEPTH = 4
_MAX_PARTS = 20
_MAX_HEAD_BYTES = 1 << 16
_MAX_FIELDS = 300
_MAX_VALUE = 2000
_MAX_TEXT_LINES = 400
_MAX_MESSAGE_IDS = 10

_RETURNED = ("message/rfc822", "message/global", "text/rfc822-headers", "message/global-headers")
_STATUS = ("message/delivery-status", "message/global-delivery-status")
_FEEDBACK = "message/feedback-report"

_BY_ACTION = {"failed": Kind.BOUNCED, "delayed": Kind.DEFERRED, "delivered": Kind.DELIVERED}
_SAYS_NOTHING = ("relayed", "expanded")
"""What an action means (RFC 3464, section 2.3.3)."""
_BY_CLASS = {"5": Kind.BOUNCED, "4": Kind.DEFERRED, "2": Kind.DELIVERED}
"""For reports with another action or none: the class of the status (RFC 3463, section 3.1)."""

_BY_FEEDBACK = {
    "abuse": Kind.COMPLAINED,
    "fraud": Kind.COMPLAINED,
    "opt-out": Kind.UNSUBSCRIBED,
    "opt-out-list": Kind.UNSUBSCRIBED,
}
"""What a type of feedback means: RFC 5965, section 7.3, and its drafts. The others, such as
``not-spam`` and ``auth-failure``, are not about the recipient's wish."""

_STATUS_CODE = re.compile(r"[245]\.\d{1,3}\.\d{1,3}")
_SAYS_REFUSED = re.compile(r"(?<![\d.])5\d\d(?=[ :\-])|(?<![\d.])5\.\d{1,3}\.\d{1,3}(?!\.?\d)")
_MESSAGE_ID = re.compile(r"<[^<>\s]{1,253}>")
_COPY_BEGINS = (
    *("---below this line", "--- below this line", "------ this is a copy", "--- original message"),
    *("---- orig", "----- message header", "----- unsent message", "a copy of the original"),
)
"""How text ends in which a server explains itself, in lower case: the returned mail follows."""
_SYSTEM_SENDERS = ("mailer-daemon", "postmaster", "mail-daemon", "maildaemon", "mailer_daemon")
_BOUNCE_SUBJECTS = (
    *("undeliver", "delivery fail", "failure", "returned mail", "returning message", "failed mail"),
    *("delivery status", "delivery has failed", "could not be delivered", "not delivered"),
    *("delivery error", "delivery problem", "returned to sender", "delivery notification"),
)
_DELAY_SUBJECTS = ("delay", "warning", "still being retried")
_OTHER_SUBJECTS = ("success", "relayed", "read:")
"""Words in the subject of a report from a mail system, in lower case."""
_REPLY_FIELDS = ("x-autoreply", "x-autorespond", "x-auto-reply", "x-autoresponder")
_HOTMAIL_RECIPIENT = "x-hmxmroriginalrecipient"
"""The header by which Outlook.com's Junk Mail Reporting Program names who complained."""

_TIED_BY = (
    *("to", "delivered-to", "x-original-to", "envelope-to", "x-envelope-to", "x-rcpt-to"),
    *("resent-to", "x-forwarded-to", "original-recipient"),
)
"""Headers in which the report's own envelope recipient may stand."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a report says of one recipient."""

    kind: Kind
    addresses: tuple[str, ...] = field(default=(), repr=False)
    """The recipient as the report names it, most original first; empty if it names none."""
    reply: str = field(default="", repr=False)
    """The reply of the server that refused, and the status, as one clean line."""


@dataclass(frozen=True, slots=True)
class Report:
    """What came back, and what it may be tied to its e-mail by. Nothing of it is proven."""

    verdicts: tuple[Verdict, ...]
    tied_by: tuple[str, ...] = field(default=(), repr=False)
    """Text in which the e-mail's signed return address may stand."""
    message_ids: tuple[str, ...] = ()
    """The Message-IDs of the e-mail, as the report gives them."""
    at: datetime | None = None
    """When the report was written, if it says so."""


@dataclass(frozen=True, slots=True)
class _Part:
    fields: Mapping[str, Sequence[str]]
    content: bytes
    kind: str
    boundary: str

    def first(self, name: str) -> str:
        values = self.fields.get(name)
        return values[0] if values else ""

    @property
    def text(self) -> str:
        encoding = self.first("content-transfer-encoding").strip().lower()
        content = self.content
        if encoding == "quoted-printable":
            content = quopri.decodestring(content)
        elif encoding == "base64":
            try:
                content = binascii.a2b_base64(content)
            except binascii.Error:
                content = b""
        return content.decode("utf-8", "replace").replace("\0", "").replace("\r\n", "\n")


def parse(content: bytes) -> Report | None:
    """Return what a message reports; ``None`` if it is no report that is understood.

    ``content`` is the message as received, of any size and form: only its first ``MAX_BYTES`` are
    read. Understands delivery status notifications (RFC 3464, RFC 6533), feedback reports (RFC
    5965), complaints of Outlook.com, the texts of qmail, Exim and others, and automatic replies
    (RFC 3834).
    """
    raw = content[:MAX_BYTES].replace(b"\r\n", b"\n").lstrip(b"\n")
    if raw.startswith(b"From "):  # a line that mbox files and pipes begin with
        raw = raw.partition(b"\n")[2]
    top = _part(raw)
    parts = list(_leaves(top))
    returned = [_part(part.text.encode()) for part in parts if part.kind in _RETURNED]
    verdicts = _verdicts(top, parts, returned)
    if not verdicts:
        return None
    return Report(
        tuple(verdicts[:MAX_RECIPIENTS]),
        tied_by=tuple(_tied_by(top, parts, returned)),
        message_ids=tuple(dict.fromkeys(_message_ids(top, parts, returned)))[:_MAX_MESSAGE_IDS],
        at=_time(top.first("date")),
    )


def _verdicts(top: _Part, parts: Sequence[_Part], returned: Sequence[_Part]) -> list[Verdict]:
    """Return the verdicts of the first form that a message has."""
    text = next((part.text for part in parts if part.kind == "text/plain"), "")
    lines = _explanation(text)
    if any(part.kind in _STATUS for part in parts):
        found = (part for part in parts if part.kind in _STATUS)
        verdicts = (it for part in found for it in _delivery_status(part, lines))
        return list(islice(verdicts, MAX_RECIPIENTS))
    if any(part.kind == _FEEDBACK for part in parts):
        return [it for part in parts if part.kind == _FEEDBACK for it in _feedback(part)]
    for part in returned:
        if complainer := part.first(_HOTMAIL_RECIPIENT):
            return [Verdict(Kind.COMPLAINED, _addresses(complainer))]
    return _words(top, lines) or _automatic_reply(top)


def _delivery_status(part: _Part, lines: Sequence[str]) -> Iterator[Verdict]:
    """Yield the verdicts of a delivery status notification (RFC 3464, section 2).

    Where it gives no diagnostic code, the words count that ``lines`` have about the address.
    """
    groups = part.text.strip("\n").split("\n\n", MAX_RECIPIENTS + 1)
    for group in groups[: MAX_RECIPIENTS + 1]:
        fields = _fields(group)
        named = [it for of in ("original", "final") for it in fields.get(f"{of}-recipient", ())[:2]]
        if not named:
            continue  # the group about the message as a whole
        status = _STATUS_CODE.search((fields.get("status") or [""])[0])
        code = status[0] if status else ""
        action = (fields.get("action") or [""])[0].partition(" ")[0].strip().lower()
        kind = _BY_ACTION.get(action) or _BY_CLASS.get(code[:1])
        if kind is None or action in _SAYS_NOTHING:
            continue
        addresses = tuple(dict.fromkeys(it for name in named for it in _rcpt(name)))
        reply = _after_type((fields.get("diagnostic-code") or [""])[0])
        reply = reply or next(
            (it for it in lines if it and addresses[-1:] and addresses[-1] in it), ""
        )
        yield Verdict(kind, addresses, reply_text(f"{reply} ({code})" if code else reply))


def _feedback(part: _Part) -> Iterator[Verdict]:
    """Yield the verdicts of a feedback report (RFC 5965, section 3)."""
    fields = _fields(part.text)
    kind = _BY_FEEDBACK.get((fields.get("feedback-type") or [""])[0].strip().lower())
    if kind is not None:
        for named in fields.get("original-rcpt-to", [""])[:MAX_RECIPIENTS]:
            yield Verdict(kind, _addresses(named))


def _words(top: _Part, lines: Sequence[str]) -> list[Verdict]:
    """Return the verdicts of a bounce that is only text, such as those of qmail and older Exim."""
    sender, subject = top.first("from").lower(), top.first("subject").lower()
    failed = top.fields.get("x-failed-recipients", ())
    refusal = next((line for line in lines if _SAYS_REFUSED.search(line)), "")
    is_system = any(it in sender for it in _SYSTEM_SENDERS)
    is_system &= not any(it in subject for it in _OTHER_SUBJECTS)
    is_delayed = is_system and any(it in subject for it in _DELAY_SUBJECTS)
    # In whatever language its subject is: a daemon is never on holiday.
    is_daemon = "daemon" in sender and bool(_automatic_reply(top))
    is_failed = bool(refusal) or is_daemon or any(it in subject for it in _BOUNCE_SUBJECTS)
    is_bounce = is_system and (is_delayed or is_failed)
    if not failed and not is_bounce:
        return []
    kind = Kind.DEFERRED if is_delayed else Kind.BOUNCED
    named = [Verdict(kind, *it) for it in _by_address(lines)][:MAX_RECIPIENTS]
    if named:
        return named
    at = lines.index(refusal) if refusal else 0
    words = reply_text(" ".join(lines[at : at + 3]))
    recipients = [it for value in failed for it in value.split(",")][:MAX_RECIPIENTS]
    return [Verdict(kind, _addresses(it), words) for it in recipients or [""]]


def _by_address(lines: Sequence[str]) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield each address that begins a paragraph, ``<a@example.com>:``, and the reason after it.

    So write qmail (cr.yp.to/proto/qsbmf.txt), Postfix and Yahoo.
    """
    address, reason = "", []  # type: tuple[str, list[str]]
    for line in (*lines, ""):
        named, mark, rest = line.partition(">:")
        is_named = bool(mark) and named.startswith("<")
        if (is_named or not line) and address:
            yield _addresses(address), reply_text(" ".join(reason))
            address, reason = "", []
        if is_named:
            address, reason = named[1:], [rest.strip()]
        elif address:
            reason.append(line)


def _automatic_reply(top: _Part) -> list[Verdict]:
    """Return the verdict of an automatic reply (RFC 3834, section 5), such as an absence notice."""
    said = top.first("auto-submitted").strip().lower()
    is_automatic = bool(said) and not said.startswith("no")
    is_automatic |= any(name in top.fields for name in _REPLY_FIELDS)
    is_automatic |= "auto_reply" in top.first("precedence").lower()
    return [Verdict(Kind.AUTORESPONDED, _addresses(top.first("from")))] if is_automatic else []


def _explanation(text: str) -> list[str]:
    """Return the lines of text that come before the returned mail, without surrounding space."""
    lines = []
    for line in text.split("\n", _MAX_TEXT_LINES)[:_MAX_TEXT_LINES]:
        bare = line[:_MAX_VALUE].strip()
        if bare.lower().startswith(_COPY_BEGINS):
            break
        lines.append(bare)
    return lines


def _tied_by(top: _Part, parts: Sequence[_Part], returned: Sequence[_Part]) -> Iterator[str]:
    """Yield text in which the signed return address may stand, the most likely first."""
    for name in _TIED_BY:
        yield from top.fields.get(name, ())[:5]
    for part in parts:
        if part.kind == _FEEDBACK:
            yield from _fields(part.text).get("original-mail-from", ())[:5]
    for part in returned:
        yield from part.fields.get("return-path", ())[:5]
    yield from (line for line in _quoted(parts) if line.lower().startswith("return-path:"))


def _message_ids(top: _Part, parts: Sequence[_Part], returned: Sequence[_Part]) -> Iterator[str]:
    values = [part.first("message-id") for part in returned]
    values += [line for line in _quoted(parts) if line.lower().startswith("message-id:")]
    values += [top.first("in-reply-to"), top.first("references")]
    for value in values:
        yield from _MESSAGE_ID.findall(value[:_MAX_VALUE])


def _quoted(parts: Sequence[_Part]) -> list[str]:
    """Return lines of text, among which headers of the returned mail may be."""
    text = next((part.text for part in parts if part.kind == "text/plain"), "")
    return [it[:_MAX_VALUE].strip() for it in text.split("\n", _MAX_TEXT_LINES)[:_MAX_TEXT_LINES]]


def _time(value: str) -> datetime | None:
    try:
        at = parsedate_to_datetime(value)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return timezone.make_aware(at, timezone.get_default_timezone()) if at.tzinfo is None else at


# -- addresses


def _rcpt(value: str) -> list[str]:
    """Return the address of a field such as ``rfc822; a@example.com``, as it stands and decoded.

    An address that came in ORCPT may be in xtext (RFC 3461, section 4), where ``+2B`` is a plus.
    """
    bare = _after_type(value).strip().strip("<>")
    decoded = re.sub(r"\+([0-9A-F]{2})", lambda it: chr(int(it[1], 16)), bare).replace("\0", "")
    return [it for it in dict.fromkeys((bare, decoded)) if 0 < len(it) <= LENGTH]


def _after_type(value: str) -> str:
    """Return what follows the type of a typed field, ``type; value`` (RFC 3464, section 2.1.2)."""
    kind, semicolon, rest = value.partition(";")
    is_type = semicolon and kind.strip().replace("-", "").isalnum()
    return rest.strip() if is_type else value.strip()


def _addresses(value: str) -> tuple[str, ...]:
    found = getaddresses([value[:_MAX_VALUE]])
    return tuple(address for _, address in found[:1] if 0 < len(address) <= LENGTH)


# -- MIME (RFC 2045, RFC 2046), bounded


def _leaves(part: _Part, depth: int = 0) -> Iterator[_Part]:
    """Yield the parts of a message that are not multipart, without entering returned messages."""
    if not part.boundary:
        yield part
    elif depth < _MAX_DEPTH:
        for raw in _split(part.content, part.boundary.encode("utf-8", "replace")):
            yield from _leaves(_part(raw), depth + 1)


def _split(content: bytes, boundary: bytes) -> Iterator[bytes]:
    """Yield the bodies between the lines of a boundary, which may be cut off at the end."""
    pieces = (b"\n" + content).split(b"\n--" + boundary, 2 * _MAX_PARTS)
    gathered: bytes | None = None
    number = 0
    for piece in pieces[1:]:
        rest, newline, body = piece.partition(b"\n")
        if rest.strip() not in (b"", b"--"):  # a line of another boundary that begins with this one
            if gathered is not None:
                gathered += b"\n--" + boundary + piece
            continue
        if gathered is not None:
            yield gathered
            number += 1
        gathered = body if newline and not rest.startswith(b"--") else None
        if gathered is None or number >= _MAX_PARTS:
            return
    if gathered is not None:
        yield gathered


def _part(raw: bytes) -> _Part:
    """Return a part from its header and body."""
    if raw.startswith(b"\n"):
        head, body = b"", raw[1:]
    else:
        head, _, body = raw.partition(b"\n\n")
    fields = _fields(head[:_MAX_HEAD_BYTES].decode("utf-8", "replace").replace("\0", ""))
    declared: Message[str, str] = Message()
    declared["Content-Type"] = (fields.get("content-type") or ["text/plain"])[0]
    kind, boundary = declared.get_content_type(), ""
    if kind.startswith("multipart/"):
        with contextlib.suppress(ValueError, TypeError):  # by Python, for odd forms of RFC 2231
            boundary = declared.get_boundary("") or ""
    return _Part(fields, body, kind, boundary[:200])


def _fields(text: str) -> dict[str, list[str]]:
    """Return header fields by lower-case name; folded lines are joined, long values cut."""
    unfolded: list[str] = []
    for line in text.split("\n"):
        if line[:1] in (" ", "\t") and unfolded:
            if len(unfolded[-1]) < _MAX_VALUE:
                unfolded[-1] += f" {line.strip()}"
        elif len(unfolded) >= _MAX_FIELDS:
            break
        else:
            unfolded.append(line)
    found: dict[str, list[str]] = {}
    for line in unfolded:
        name, colon, value = line.partition(":")
        if colon:
            found.setdefault(name.strip().lower()[:100], []).append(value.strip()[:_MAX_VALUE])
    return found
