"""A stored message is restored exactly, on every version of Django."""

from __future__ import annotations

import contextlib
import json
import string
from base64 import b64decode
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from anymail.message import AnymailMessage
from anymail.utils import UNSET
from django.core import mail
from django.core.mail import EmailAttachment, EmailMessage, EmailMultiAlternatives
from django.core.mail.backends.locmem import EmailBackend as LocmemBackend
from django.utils.functional import SimpleLazyObject
from hypothesis import given
from hypothesis import strategies as st

from django_epica_mail.exceptions import InvalidMessage, UnreadableEnvelope, UnstorableMessage
from django_epica_mail.messages import (
    Blob,
    RawMessage,
    StoredMessage,
    Terms,
    check,
    codec,
    dump,
    load,
)
from tests import corpus

ENVELOPES = Path(__file__).with_name("envelopes")

kinds = pytest.mark.parametrize("make", dict(corpus.CORPUS).values(), ids=dict(corpus.CORPUS))


def reload(stored: StoredMessage) -> Any:
    return load(stored.envelope, {blob.digest: blob.content for blob in stored.blobs})


def round_trip(message: EmailMessage) -> Any:
    return reload(dump(message))


def assert_same_on_the_wire(message: EmailMessage, other: EmailMessage) -> None:
    sender, recipients, content = corpus.wire(message)
    other_sender, other_recipients, other_content = corpus.wire(other)
    assert (other_sender, other_recipients) == (sender, recipients)
    assert corpus.normalise(other_content) == corpus.normalise(content)


def snapshot(value: object) -> object:
    """Return everything an object consists of, as comparable values."""
    if isinstance(value, (list, tuple)):
        return [type(value), *map(snapshot, value)]
    if isinstance(value, dict):
        return [type(value), *((snapshot(k), snapshot(v)) for k, v in value.items())]
    if hasattr(value, "__dict__") and not isinstance(value, (type, str)):
        return [type(value), id(value), snapshot(vars(value))]
    return (type(value), value if isinstance(value, (str, bytes, int, float)) else repr(value))


@kinds
def test_a_stored_message_is_sent_with_the_same_bytes(make: Any) -> None:
    assert_same_on_the_wire(make(), round_trip(make()))


@kinds
def test_a_loaded_message_can_be_stored_again(make: Any) -> None:
    once = round_trip(make())
    check(once)
    assert_same_on_the_wire(make(), round_trip(once))


@kinds
def test_check_and_dump_do_not_change_the_message(make: Any) -> None:
    message = make()
    before = snapshot(message)
    check(message)
    dump(message)
    assert snapshot(message) == before


@kinds
def test_the_locmem_backend_accepts_a_loaded_message(make: Any) -> None:
    mail.outbox = []
    assert LocmemBackend(alias="memory").send_messages([round_trip(make())]) == 1
    assert_same_on_the_wire(make(), mail.outbox[0])


@kinds
def test_the_envelope_is_ascii_json_without_blobs(
    make: Any,
) -> None:
    stored = dump(make())
    assert stored.envelope.isascii()
    assert "\0" not in stored.envelope
    assert json.loads(stored.envelope)["v"] == 1
    assert len({blob.digest for blob in stored.blobs}) == len(stored.blobs)
    assert all(blob.digest in stored.envelope for blob in stored.blobs)
    assert repr(make().body or "no body") not in repr(stored)


def test_normalising_keeps_the_messages_own_headers_and_body() -> None:
    content = corpus.normalise(corpus.wire_bytes(corpus.fixed_ids()))
    assert b"<order-7@example.com>" in content
    assert b"Date: Mon, 01 Jan 2001 00:00:00 -0000" in content
    other = corpus.normalise(corpus.wire_bytes(corpus.plain(body="Another body\n")))
    assert other != corpus.normalise(corpus.wire_bytes(corpus.plain()))
    assert b"Date: now" in other
    assert b"Message-ID: <made>" in other


def test_equal_content_is_stored_once_as_text_and_as_bytes() -> None:
    message = corpus.plain()
    message.attachments += [
        EmailAttachment("a.json", "same", "application/json"),
        EmailAttachment("b.bin", b"same", "application/octet-stream"),
    ]
    stored = dump(message)
    assert [(blob.filename, blob.content) for blob in stored.blobs] == [("a.json", b"same")]
    assert reload(stored).attachments == message.attachments


def test_an_inline_image_is_stored_decoded() -> None:
    (blob,) = dump(corpus.inline_legacy()).blobs
    assert (blob.content, blob.filename, blob.mimetype) == (corpus.PNG, "logo.png", "image/png")


def test_a_memoryview_from_the_database_is_accepted() -> None:
    stored = dump(corpus.with_attachment("a.pdf", b"%PDF", "application/pdf"))
    message = load(stored.envelope, {b.digest: memoryview(b.content) for b in stored.blobs})  # type: ignore[misc]
    assert message.attachments == [EmailAttachment("a.pdf", b"%PDF", "application/pdf")]


VALUES = {
    "bytes": b"\0\xff",
    "datetime": datetime(2027, 1, 2, 3, 4, 5, 6, tzinfo=timezone(timedelta(hours=3))),
    "naive": datetime(2027, 1, 2, 3, 4, 5),
    "date": date(2027, 1, 2),
    "time": time(3, 4, 5, 6),
    "span": timedelta(days=-1, microseconds=5),
    "decimal": Decimal("1.10"),
    "uuid": UUID(int=7),
    "tuple": (1, ("a", b"b")),
    "set": {1, 2},
    "frozen": frozenset({"a"}),
    "numbers": [1, -0.5, True, None, float("inf"), 10**30],
    "keys": {1: "a", None: "b", (1, 2): "c"},
    "tag": {"$": "bytes", "v": "aGk="},
    "deep": {"a": [{"b": ({"c": Decimal(1)},)}]},
}


@pytest.mark.parametrize("name", VALUES)
def test_an_attribute_is_restored_with_its_value(name: str) -> None:
    message: Any = corpus.plain()
    message.metadata = {name: VALUES[name]}
    back = round_trip(message)
    assert back.metadata == message.metadata
    assert repr(back.metadata) == repr(message.metadata)


def test_private_names_connection_and_status_are_not_stored() -> None:
    message: Any = corpus.plain()
    vars(message).update(_secret=object(), connection=object(), anymail_status=object())
    assert not {"_secret", "anymail_status"} & set(vars(round_trip(message)))
    assert "connection" not in json.loads(dump(message).envelope)["state"]


@pytest.mark.parametrize("value", [object(), [object()], {"a": (object(),)}, print, 1j])
def test_an_unstorable_attribute_is_refused_with_the_remedy(value: Any) -> None:
    message: Any = corpus.plain()
    message.context = value
    with pytest.raises(UnstorableMessage, match=r"'context' of type \w+ contains a .*delete"):
        dump(message)


def test_an_attribute_that_contains_itself_is_refused() -> None:
    message: Any = corpus.plain()
    message.loop = []
    message.loop.append(message.loop)
    with pytest.raises(UnstorableMessage, match="'loop'"):
        dump(message)


def test_anymails_message_is_restored_with_unset_attributes() -> None:
    message = AnymailMessage(
        "Subject", "Body", "from@example.com", ["to@example.com"], tags=["a"], track_opens=True
    )
    message.attach_alternative("<p>HTML</p>", "text/html")
    message.attach_inline_image(corpus.PNG, "logo.png", "png")
    message.merge_data = {"to@example.com": {"name": "Ayşe"}}
    back = round_trip(message)
    assert type(back) is AnymailMessage
    assert (back.tags, back.track_opens, back.merge_data) == (["a"], True, message.merge_data)
    assert back.metadata is UNSET
    assert "anymail_status" not in vars(back)
    assert_same_on_the_wire(message, back)


class Computed(EmailMultiAlternatives):
    """A class that computes a field from private data."""

    def __init__(self, name: str) -> None:
        self._name = name
        super().__init__("Subject", to=["to@example.com"])

    @property
    def body(self) -> str:
        return f"Dear {self._name}"

    @body.setter
    def body(self, value: str) -> None:
        pass

    @cached_property
    def context(self) -> object:
        return object()


def test_a_computed_field_is_stored_with_its_current_value() -> None:
    message = Computed("Ayşe")
    assert message.context is message.context
    back = round_trip(message)
    assert type(back) is EmailMultiAlternatives
    assert back.body == "Dear Ayşe"


class Strict(EmailMultiAlternatives):
    """A class whose ``__init__`` has parameters of its own."""

    def __init__(self, order: dict[str, str], *, to: list[str]) -> None:
        super().__init__(order["title"], "Body", "from@example.com", to)
        self.order = order


def test_a_class_is_rebuilt_without_calling_its_init() -> None:
    back = round_trip(Strict({"title": "Order 7"}, to=["to@example.com"]))
    assert type(back) is Strict
    assert (back.subject, back.order) == ("Order 7", {"title": "Order 7"})
    assert isinstance(vars(back), dict)
    assert back.message()["Subject"] == "Order 7"


@pytest.mark.parametrize(
    "path", ["gone.module:Class", "tests.corpus:Gone", "json:JSONDecoder", "os:path", "no path", ""]
)
def test_a_missing_or_wrong_class_loses_no_part_of_the_mail(path: str) -> None:
    stored = dump(corpus.newsletter())
    form = {**json.loads(stored.envelope), "class": path}
    back = reload(StoredMessage(envelope=json.dumps(form), blobs=stored.blobs))
    assert type(back) is EmailMultiAlternatives
    assert (back.issue, back.tags) == (7, ("newsletter",))
    assert_same_on_the_wire(corpus.newsletter(), back)


def test_a_local_class_keeps_its_fields_and_recipients() -> None:
    class Local(corpus.Archived):
        content_subtype = "html"

    message = Local("Subject", "<p>B</p>", "from@example.com", ["to@example.com"])
    back = round_trip(message)
    assert type(back) is EmailMultiAlternatives
    assert back.recipients() == ["to@example.com", "archive@example.com"]
    assert_same_on_the_wire(message, back)


def test_computed_recipients_are_stored_when_dumped() -> None:
    message = corpus.Archived("Subject", "Body", to=["to@example.com"])
    stored = dump(message)
    message.to.append("late@example.com")
    assert reload(stored).recipients() == ["to@example.com", "archive@example.com"]


def test_case_insensitive_headers_work_as_a_plain_dict() -> None:
    class Insensitive(dict):  # type: ignore[type-arg]
        def __getitem__(self, key: str) -> Any:
            return {name.lower(): value for name, value in self.items()}[key.lower()]

        def __contains__(self, key: object) -> bool:
            return str(key).lower() in {name.lower() for name in self}

    message = corpus.plain(headers=Insensitive({"reply-to": "a@example.com", "x-own": "1"}))
    back = round_trip(message)
    assert type(back.extra_headers) is dict
    assert b"Reply-To: a@example.com" in corpus.wire_bytes(back)
    assert_same_on_the_wire(message, back)


def test_a_lazy_object_is_evaluated_when_dumped() -> None:
    subject = ["now"]
    message = corpus.plain(subject=SimpleLazyObject(lambda: subject[0]))
    stored = dump(message)
    subject[0] = "later"
    assert reload(stored).subject == "now"


def test_a_future_version_is_refused_with_the_remedy() -> None:
    form = {**json.loads(dump(corpus.plain()).envelope), "v": 2}
    with pytest.raises(UnreadableEnvelope, match=r"version 2;.*version 1: upgrade the package"):
        load(json.dumps(form), {})


@pytest.mark.parametrize("envelope", ["", "{", "[]", "null", "{}"])
def test_an_invalid_envelope_is_refused(envelope: str) -> None:
    with pytest.raises(UnreadableEnvelope):
        load(envelope, {})


def test_a_value_of_an_unknown_kind_is_refused() -> None:
    form = json.loads(dump(corpus.plain()).envelope)
    form["state"]["metadata"] = {"$": "complex", "v": [1, 2]}
    with pytest.raises(UnreadableEnvelope, match=r"'complex'.*upgrade"):
        load(json.dumps(form), {})


def test_missing_content_is_named() -> None:
    stored = dump(corpus.with_attachment("a.pdf", b"%PDF", "application/pdf"))
    with pytest.raises(UnreadableEnvelope, match=stored.blobs[0].digest):
        load(stored.envelope, {})


def test_an_invalid_attachment_is_refused_without_check_too() -> None:
    message = corpus.plain()
    message.attachments.append(("a.txt", 7, "text/plain"))
    with pytest.raises(InvalidMessage, match=r"'a.txt' .*int"):
        dump(message)


def written(path: Path) -> dict[str, StoredMessage]:
    """Return the messages of CORPUS as an earlier version wrote them; never regenerate them."""
    return {
        kind: StoredMessage(
            envelope=json.dumps(stored["envelope"]),
            blobs=tuple(
                Blob(digest=digest, content=b64decode(content), filename="", mimetype="")
                for digest, content in stored["blobs"].items()
            ),
        )
        for kind, stored in json.loads(path.read_text()).items()
    }


WRITTEN = {path.stem: written(path) for path in sorted(ENVELOPES.glob("v1_*.json"))}
# Expected in kinds that only some versions of Django can build, but all can send.
FOREIGN = {
    "multipart_subtypes": b"Content-ID: <logo@example.com>",
    "encoding_as_charset_object": "Grüße, 10 £".encode(),
    "inline_image_modern": b"Content-ID: <logo@example.com>",
    "recipients_as_address_objects": b" <a@example.com>",
}
EVERY_ENVELOPE = [(version, kind) for version, kinds in WRITTEN.items() for kind in kinds]


def test_there_are_envelopes_of_every_supported_django() -> None:
    assert list(WRITTEN) == ["v1_django52", "v1_django60", "v1_django61"]
    assert all(len(kinds) > 40 for kinds in WRITTEN.values())


@pytest.mark.parametrize(("version", "kind"), EVERY_ENVELOPE)
def test_every_django_reads_and_sends_every_envelope(version: str, kind: str) -> None:
    stored = WRITTEN[version][kind]
    message = reload(stored)
    direct = dict(corpus.CORPUS).get(kind)
    if isinstance(message, RawMessage):
        assert corpus.wire_bytes(message) == stored.blobs[0].content
    elif direct is not None:
        assert_same_on_the_wire(direct(), message)
    else:
        assert FOREIGN[kind] in corpus.wire_bytes(message)


# All of Unicode, and what text decoded with "surrogateescape" contains.
any_text = st.text(
    st.characters(exclude_categories=["Cs"])
    | st.characters(min_codepoint=0xDC80, max_codepoint=0xDCFF)
    | st.sampled_from("\0\r\n\u2028ğ🎉")
)
a_line = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), max_size=60)
a_name = st.text(string.ascii_letters + " ", max_size=20)
an_address = st.emails() | st.builds('"{}" <{}>'.format, a_name, st.emails())
own_headers = st.dictionaries(
    st.sampled_from(["X-Own", "list-id", "Reply-To", "Sender", "Message-ID", "References"])
    | st.text(string.ascii_letters + "-", min_size=1).map("X-{}".format),
    a_line,
    max_size=4,
)
an_attachment = st.tuples(
    st.none() | a_line,
    st.binary(max_size=100) | any_text,
    st.sampled_from(["text/plain", "text/csv", "application/pdf", "image/png", "message/rfc822"]),
)


@given(
    subject=a_line,
    body=any_text,
    sender=an_address,
    to=st.lists(an_address, min_size=1, max_size=3),
    bcc=st.lists(an_address, max_size=1),
    headers=own_headers,
    attachments=st.lists(an_attachment, max_size=2),
    alternative=any_text | st.binary(max_size=100),
)
def test_a_checked_message_is_sent_as_django_would_send_it(
    subject: str,
    body: str,
    sender: str,
    to: list[str],
    bcc: list[str],
    headers: dict[str, str],
    attachments: list[tuple[str | None, Any, str]],
    alternative: str | bytes,
) -> None:
    message = EmailMultiAlternatives(subject, body, sender, to, bcc=bcc, headers=headers)
    for attachment in attachments:
        message.attach(*attachment)
    text = isinstance(alternative, str)
    message.attach_alternative(alternative, "text/html" if text else "application/pdf")
    back = round_trip(message)
    assert (back.subject, back.body, back.from_email) == (subject, body, sender)
    assert (back.to, back.bcc, back.extra_headers) == (to, bcc, headers)
    assert back.attachments == message.attachments
    assert back.alternatives == message.alternatives
    try:
        check(message)
    except ValueError:
        # IndexError: Python's own parser of a header such as Reply-To: "
        with pytest.raises((ValueError, TypeError, IndexError)):
            corpus.wire(message)
    else:
        assert_same_on_the_wire(message, back)


def test_a_class_that_builds_itself_becomes_a_raw_message() -> None:
    back = round_trip(corpus.Signed("Subject", "Secret", to=["to@example.com"]))
    assert type(back) is RawMessage
    assert (back.subject, back.to, back.body) == ("Subject", ["to@example.com"], "")


@kinds
def test_terms_are_read_back_and_change_nothing_else(make: Any) -> None:
    stored, terms = dump(make()), Terms("opens clicks", "never")
    envelope = codec.with_terms(stored.envelope, terms)
    blobs = {blob.digest: blob.content for blob in stored.blobs}
    message, found = codec.load_with_terms(envelope, blobs)
    assert found == terms == codec.terms(envelope, "")
    assert codec.digests(envelope, "") == set(blobs)
    assert codec.is_same(envelope, stored.envelope)
    assert_same_on_the_wire(make(), message)


def test_a_message_without_terms_has_none() -> None:
    assert codec.terms(dump(EmailMessage("S", "B", None, ["to@example.com"])).envelope, "") is None


@given(st.recursive(
    st.none() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["v", "state", "raw", "to", "class", "terms", "attachments", "$"]), inner
    ),
    max_leaves=12,
))  # fmt: skip
def test_whatever_is_stored_it_is_read_or_unreadable(form: Any) -> None:
    envelope = json.dumps({"v": 1, **form} if isinstance(form, dict) else form)
    for read in (codec.terms, codec.digests):
        with contextlib.suppress(UnreadableEnvelope):
            read(envelope, "")
    with contextlib.suppress(UnreadableEnvelope):
        codec.without_recipients(envelope, bool, "")
