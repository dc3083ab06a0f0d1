"""Stores a Django message as versioned JSON and bytes, loads it again, and removes recipients.

Nothing is pickled, and no MIME is parsed again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from email.message import Message
from email.mime.base import MIMEBase
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import django
from django.core.mail import EmailAlternative, EmailAttachment, EmailMessage, EmailMultiAlternatives

from django_epica_mail.exceptions import UnreadableEnvelope
from django_epica_mail.messages import bounds, encryption, fields, mime, raw, tagged_json
from django_epica_mail.messages.raw import RawMessage
from django_epica_mail.messages.validation import Attachment, Rules, alternatives, attachments

if TYPE_CHECKING:
    from collections.abc import Callable

    from django_epica_mail.messages.mime import Fetch, Keep


VERSION = 1

_RECIPIENT_FIELDS = ("to", "cc", "bcc")
_MERGE_FIELDS = ("merge_data", "merge_headers", "merge_metadata")
"""anymail's attributes that hold a dictionary by recipient."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Blob:
    """Content stored outside the envelope."""

    digest: str
    """SHA-256 of the content, in hexadecimal; the envelope refers to the content by it."""
    content: bytes = field(repr=False)
    filename: str
    """For people; empty if there is none."""
    mimetype: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredMessage:
    """A message in its stored form."""

    envelope: str = field(repr=False)
    """Versioned JSON, pure ASCII: NUL and lone surrogates survive in any text column. Not
    encrypted yet: the row it is for does that."""
    blobs: tuple[Blob, ...]
    """The content the envelope refers to, without duplicates."""
    size: int = 0
    """Bytes of JSON and blobs, before encryption and before attachments are encoded for sending."""
    message_id: str = ""
    """The Message-ID the message already has; empty if the sender chooses it."""
    is_raw: bool = False
    """Whether it is stored as the bytes that it built itself, to which nothing can be added."""


class Terms(NamedTuple):
    """What was asked for besides the message; encrypted with it, because columns are in clear."""

    additions: str
    """``EmailLog.additions``: an added one would write links into a message, and follow them."""
    keep_content: str
    """``EmailLog.keep_content``: with another, what is hidden would be shown."""


class AbsentAttachments(Mapping[str, bytes]):
    """Attachments for ``load`` that are all empty: for reading the rest of a message."""

    def __init__(self) -> None:
        self.digests: set[str] = set()
        """The content that was asked for."""

    def __getitem__(self, digest: str) -> bytes:
        self.digests.add(digest)
        return b""

    def __contains__(self, digest: object) -> bool:
        return True

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


def dump(
    message: EmailMessage,
    rules: Rules = Rules.SMTP,
    is_read: Callable[[], bool] = lambda: True,
) -> StoredMessage:
    """Return a message in its stored form, without changing the message.

    A message that builds its own MIME (``raw.builds_itself``) is rendered, once, and stored as
    bytes, unless by ``rules`` only its fields are read and it has any; errors from its own code
    propagate.
    Otherwise raises ``UnstorableMessage`` if the message could not be rebuilt exactly, and
    ``InvalidMessage`` for anything Django cannot attach. ``is_read`` returns whether a transport
    may read an attribute that is not Django's; if none does, ``fields.pack`` may leave it out.
    """
    blobs: dict[str, Blob] = {}

    def keep(content: bytes, filename: str, mimetype: str) -> str:
        digest = hashlib.sha256(content).hexdigest()
        if digest not in blobs:
            blobs[digest] = Blob(
                digest=digest, content=content, filename=filename, mimetype=mimetype
            )
        return digest

    has_fields = rules is Rules.FIELDS and not isinstance(message, RawMessage)
    is_raw = raw.builds_itself(message) and not has_fields
    if is_raw:
        wire = raw.render(message)
        bounds.check_reading(wire)
        form, message_id = _pack_raw(message, wire, keep), raw.message_id(wire)
    else:
        form, message_id = _pack(message, keep, is_read), _message_id(message)
    plain = json.dumps({"v": VERSION, **form}, allow_nan=False)
    return StoredMessage(
        envelope=plain,
        blobs=tuple(blobs.values()),
        size=len(plain) + sum(len(blob.content) for blob in blobs.values()),
        message_id=message_id,
        is_raw=is_raw,
    )


def with_terms(envelope: str, terms: Terms) -> str:
    """Return a stored message, not encrypted yet, that carries the terms of its row."""
    return f'{{"terms": {json.dumps(terms._asdict())}, {envelope[1:]}'


def load(envelope: str, blobs: Mapping[str, bytes], place: str | None = None) -> EmailMessage:
    """Return a new message from its stored form, as ``load_with_terms`` does."""
    return load_with_terms(envelope, blobs, place)[0]


def load_with_terms(
    envelope: str, blobs: Mapping[str, bytes], place: str | None = None
) -> tuple[EmailMessage, Terms | None]:
    """Return a new message from its stored form, and its terms; ``blobs`` maps digests to content.

    ``place`` is where the envelope was found, as in ``encryption.unseal``. Terms are ``None`` for
    a message that was stored without encryption, or by a version before this one.

    A class that can no longer be imported becomes ``EmailMultiAlternatives``. Raises
    ``UnreadableEnvelope`` for a version this package does not know, damaged or missing content, and
    ``MissingKey`` as ``encryption.unseal`` does.
    """
    form = _read(envelope, place)

    def fetch(digest: str) -> bytes:
        if digest not in blobs:
            raise UnreadableEnvelope(
                f"The stored message refers to content {digest}, which is missing: the row of its "
                "attachment has been deleted."
            )
        return bytes(blobs[digest])

    with _AsUnreadable():
        message = _unpack_raw(form, fetch) if "raw" in form else _unpack(form, fetch)
        return message, _terms(form)


def terms(envelope: str, place: str) -> Terms | None:
    """Return the terms of a stored message; raise as ``load_with_terms`` does."""
    form = _read(envelope, place)
    with _AsUnreadable():
        return _terms(form)


def digests(envelope: str, place: str) -> set[str]:
    """Return the digests of the content that a stored message refers to; raise as ``load`` does."""
    absent = AbsentAttachments()
    load(envelope, absent, place)
    return absent.digests


def is_same(envelope: str, other: str) -> bool:
    """Return whether two stored messages are the same, whatever their terms.

    Raises ``UnreadableEnvelope`` as ``load`` does.
    """
    one, two = (_read(it, None) for it in (envelope, other))
    return {**one, "terms": None} == {**two, "terms": None}


def without_recipients(
    envelope: str, is_left_out: Callable[[str], bool], place: str | None = None
) -> str:
    """Return a stored message without some of its recipients and their merge data.

    A message stored as bytes is no longer sent to them, but its headers stay unchanged. Raises
    ``UnreadableEnvelope`` and ``MissingKey`` as ``load`` does.
    """
    form = _read(envelope, place)
    with _AsUnreadable():
        _leave_out(form, is_left_out)
        left = json.dumps(form, allow_nan=False)
    return encryption.reseal(left, envelope)


def _leave_out(form: dict[str, Any], is_left_out: Callable[[str], bool]) -> None:
    state = form["state"]
    for name in _RECIPIENT_FIELDS:
        state[name] = _without_addresses(state[name], is_left_out)
    if "recipients" in form:
        form["recipients"] = _without_addresses(form["recipients"], is_left_out)
    for name in _MERGE_FIELDS:
        values = tagged_json.decode(state.get(name))
        if isinstance(values, dict):
            kept = {key: value for key, value in values.items() if not is_left_out(str(key))}
            state[name] = tagged_json.encode(kept)


def _read(envelope: str, place: str | None) -> dict[str, Any]:
    """Return the JSON of a stored message."""
    plain = encryption.unseal(envelope, place)
    with _AsUnreadable():
        form = json.loads(plain)
    version = form.get("v") if isinstance(form, dict) else None
    if version != VERSION:
        raise UnreadableEnvelope(
            f"The message is stored in version {version!r}; this django-epica-mail reads "
            f"version {VERSION}: upgrade the package in the worker."
        )
    return form  # type: ignore[no-any-return]


def _terms(form: Mapping[str, Any]) -> Terms | None:
    terms = form.get("terms")
    return None if terms is None else Terms(str(terms["additions"]), str(terms["keep_content"]))


_DAMAGED = (
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)


class _AsUnreadable:
    """Raises ``UnreadableEnvelope`` for whatever is wrong with a damaged form."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        if isinstance(error, _DAMAGED) and not isinstance(error, UnreadableEnvelope):
            raise UnreadableEnvelope(
                f"The stored message is damaged ({type(error).__name__}), or somebody has changed "
                "it."
            ) from None


def _message_id(message: EmailMessage) -> str:
    names = {name.lower(): name for name in message.extra_headers}
    return str(message.extra_headers[names["message-id"]]) if "message-id" in names else ""


def _pack_raw(message: EmailMessage, wire: bytes, keep: Keep) -> dict[str, Any]:
    return {
        "class": mime.class_path(type(message)),
        "state": fields.pack_fields(message, (*fields.HEADER_FIELDS, "encoding")),
        "recipients": _pack_recipients(message),
        "raw": keep(wire, "", "message/rfc822"),
    }


def _unpack_raw(form: Mapping[str, Any], fetch: Fetch) -> RawMessage:
    message = RawMessage(fetch(form["raw"]), tagged_json.decode(form["recipients"]))
    vars(message).update(fields.unpack(form["state"]))
    return message


def _pack(
    message: EmailMessage, keep: Keep, is_read: Callable[[], bool] = lambda: True
) -> dict[str, Any]:
    form: dict[str, Any] = {
        "class": mime.class_path(fields.class_to_rebuild(message)),
        "state": fields.pack(message, is_read),
    }
    if unset := fields.unset_names(message):
        form["unset"] = unset
    if isinstance(message, EmailMultiAlternatives):
        form["alternatives"] = [
            [tagged_json.encode(content), mimetype] for content, mimetype in alternatives(message)
        ]
    if message.attachments:
        form["attachments"] = [_pack_attachment(item, keep) for item in attachments(message)]
    if getattr(message.recipients, "__func__", None) is not EmailMessage.recipients:
        form["recipients"] = _pack_recipients(message)
    return form


def _pack_recipients(message: EmailMessage) -> Any:
    """Return the recipients in the order of the rows, whatever a class returns: a set has another
    order in each process.
    """
    return tagged_json.encode(list(message.recipients()), unknown=str)


def _unpack(form: Mapping[str, Any], fetch: Fetch) -> EmailMessage:
    needed = EmailMultiAlternatives if form.get("alternatives") else EmailMessage
    cls = mime.find_class(form["class"], needed) or EmailMultiAlternatives
    # With the defaults of this version of Django, but without calling a site's own __init__.
    message: EmailMessage = object.__new__(cls)
    is_multi = isinstance(message, EmailMultiAlternatives)
    vars(message).update(vars(EmailMultiAlternatives() if is_multi else EmailMessage()))
    vars(message).update(fields.unpack(form["state"]), **fields.unset(form.get("unset", ())))
    vars(message)["attachments"] = [
        _unpack_attachment(item, fetch) for item in form.get("attachments", ())
    ]
    if is_multi:
        vars(message)["alternatives"] = [
            EmailAlternative(tagged_json.decode(content), mimetype)
            for content, mimetype in form.get("alternatives", ())
        ]
    if "recipients" in form:
        vars(message)["recipients"] = partial(list, list(tagged_json.decode(form["recipients"])))
    bounds.check_lengths(message)  # as in the call, for somebody may have written the row
    return message


def _pack_attachment(attachment: Attachment, keep: Keep) -> dict[str, Any]:
    if isinstance(attachment, Message):
        return {"part": mime.pack(attachment, keep)}
    filename, content, mimetype = attachment
    form: dict[str, Any] = {"name": filename, "type": mimetype}
    name_and_type = filename or "", mimetype
    if isinstance(content, bytes):
        form["bytes"] = keep(content, *name_and_type)
    elif isinstance(content, str):
        form["str"] = keep(content.encode("utf-8", "surrogatepass"), *name_and_type)
    elif isinstance(content, Message):
        form["mime"] = mime.pack(content, keep)
    elif raw.builds_itself(content):
        form["mime"] = mime.pack(raw.build(content), keep)
    else:
        form["message"] = _pack(content, keep)
    return form


def _unpack_attachment(form: Mapping[str, Any], fetch: Fetch) -> Attachment:
    if "part" in form:
        return _attachable(mime.unpack(form["part"], fetch))
    content: Any
    if "bytes" in form:
        content = fetch(form["bytes"])
    elif "str" in form:
        content = fetch(form["str"]).decode("utf-8", "surrogatepass")
    elif "mime" in form:
        content = mime.unpack(form["mime"], fetch)
    else:
        content = _unpack(form["message"], fetch)
    return EmailAttachment(form["name"], content, form["type"])


def _attachable(part: Message) -> Message:
    """Return a part stored by Django 6 as the class of object that Django 5.2 can attach."""
    if django.VERSION >= (6, 0) or isinstance(part, MIMEBase):
        return part
    legacy = MIMEBase.__new__(MIMEBase)
    vars(legacy).update(vars(part))
    return legacy


def _without_addresses(form: Any, is_left_out: Callable[[str], bool]) -> Any:
    addresses = tagged_json.decode(form)
    return tagged_json.encode([it for it in addresses or () if not is_left_out(str(it))])
