"""Attachments set directly on a message are normalised as ``attach()`` would."""

from __future__ import annotations

from collections.abc import Callable
from email.message import Message
from email.mime.base import MIMEBase
from typing import Any

import pytest
from django.core.mail import EmailAlternative, EmailAttachment, EmailMessage
from django.utils.functional import SimpleLazyObject, lazystr
from hypothesis import given
from hypothesis import strategies as st

from django_epica_mail.messages import check, dump, load
from django_epica_mail.messages.validation import alternatives, attachments
from django_epica_mail.transports import wire
from tests import corpus

names = st.none() | st.sampled_from(["a.txt", "a.csv", "a.pdf", "a.html.gz", "a", "ğ.json"])
types = st.sampled_from(["text/plain", "text/csv; x=y", "application/pdf", "message/rfc822", None])


def later(value: Any) -> SimpleLazyObject:
    return SimpleLazyObject(lambda: value)


@given(names, st.text() | st.binary(), types)
def test_a_tuple_becomes_what_attach_would_make_of_it(
    name: Any, content: Any, mimetype: Any
) -> None:
    by_hand, attached = EmailMessage(), EmailMessage()
    by_hand.attachments = [(name, content, mimetype)]
    if name is None and mimetype is None:  # attach() itself cannot guess
        mimetype = "application/octet-stream"
    attached.attach(name, content, mimetype)
    assert attachments(by_hand) == attached.attachments
    assert attachments(attached) == attached.attachments


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        (("a.txt", "text"), ("a.txt", "text", "text/plain")),
        (["a.pdf", b"%PDF"], ("a.pdf", b"%PDF", "application/pdf")),
        ((None, b"%PDF"), (None, b"%PDF", "application/octet-stream")),
        (("a.pdf", bytearray(b"%PDF")), ("a.pdf", b"%PDF", "application/pdf")),
        (("a.pdf", memoryview(b"%PDF")), ("a.pdf", b"%PDF", "application/pdf")),
        ((lazystr("a.txt"), lazystr("text")), ("a.txt", "text", "text/plain")),
        (("a", "text", lazystr("text/html")), ("a", "text", "text/html")),
        ((later("a.txt"), later("text")), ("a.txt", "text", "text/plain")),
        ((later("a.pdf"), later(b"%PDF")), ("a.pdf", b"%PDF", "application/pdf")),
    ],
    ids=range(9),
)
def test_short_lazy_and_buffer_forms_are_accepted(item: Any, expected: Any) -> None:
    message = EmailMessage()
    message.attachments = [item]
    (attachment,) = attachments(message)
    assert attachment == expected
    assert [type(part) for part in attachment] == [type(part) for part in expected]


def test_mime_parts_and_messages_stay_the_same_objects() -> None:
    part = corpus.inline_legacy().attachments[0]
    inner = corpus.plain()
    message = corpus.with_attachment("inner.eml", inner, "message/rfc822")
    message.attachments.append(part)
    first, second = attachments(message)
    assert first.content is inner  # type: ignore[union-attr]
    assert second is part


def test_alternatives_become_pairs_of_content_and_type() -> None:
    message: Any = corpus.html()
    message.alternatives += [("text", "text/markdown"), [lazystr("a"), lazystr("text/x-a")]]
    assert alternatives(message) == [
        EmailAlternative("<p>HTML</p>", "text/html"),
        EmailAlternative("text", "text/markdown"),
        EmailAlternative("a", "text/x-a"),
    ]
    assert alternatives(corpus.plain()) == []


@pytest.mark.parametrize(
    "kind", [iter, lambda items: (it for it in items), lambda items: dict.fromkeys(items).keys()]
)
def test_what_can_be_read_only_once_is_sent_whole(kind: Any) -> None:
    def message(kind: Any) -> EmailMessage:
        made: Any = corpus.html(headers={"Message-ID": "<1@example.com>"})
        made.attachments = kind([EmailAttachment("a.pdf", b"%PDF", "application/pdf")])
        made.alternatives = kind([EmailAlternative("<p>", "text/html")])
        made.reply_to = kind(["a@example.com", "b@example.com"])
        return made

    outer = corpus.with_attachment("inner.eml", message(kind), "message/rfc822")
    check(outer)
    ((_, inner, _),) = outer.attachments
    assert len(inner.attachments) == 1

    given = message(kind)
    check(given)
    stored = dump(given)
    loaded = load(stored.envelope, {blob.digest: blob.content for blob in stored.blobs})
    expected = corpus.wire_bytes(message(list))
    assert corpus.normalise(wire.build(loaded)) == corpus.normalise(expected)


def test_a_list_set_to_none_counts_as_empty() -> None:
    message: Any = corpus.html()
    message.attachments = message.alternatives = None
    assert (attachments(message), alternatives(message)) == ([], [])
    check(message)
    stored = dump(message)
    assert load(stored.envelope, {}).attachments == []
    loaded = corpus.wire_bytes(load(stored.envelope, {}))
    assert corpus.normalise(loaded) == corpus.normalise(corpus.wire_bytes(message))


REPORT = "Reporting-MTA: dns; a.example\n\nFinal-Recipient: rfc822; b@example.com\n"
NESTED = [
    *("message/delivery-status", "message/delivery_status", "message/disposition-notification"),
    *("message/feedback-report", "message/partial", "message/rfc822", "message/rfc822; x=y"),
    *("multipart/mixed", "multipart/report", "multipart/signed"),
]
CONTENTS = {"text": REPORT, "bytes": REPORT.encode(), "binary": b"\xff\0", "line ends": "ğ\r\r\n"}


def part(kind: str, payload: Any) -> Message:
    made = MIMEBase(*kind.split("/"))
    made.set_payload(payload)
    return made


PARTS = {
    "status as text": lambda: part("message/delivery-status", REPORT),
    "status of blocks": lambda: part("message/delivery-status", [Message(), Message()]),
    "status without payload": lambda: MIMEBase("message", "delivery-status"),
    "letter": lambda: part("message/rfc822", [Message()]),
    "letter as text": lambda: part("message/rfc822", REPORT),
    "letter without payload": lambda: MIMEBase("message", "rfc822"),
    "letter of nothing": lambda: part("message/rfc822", []),
    "binary without payload": lambda: MIMEBase("application", "pdf"),
    "binary of parts": lambda: part("application/pdf", [Message()]),
    "binary that is not ASCII": lambda: part("application/pdf", "ğ"),
    "binary of escaped bytes": lambda: part("application/pdf", "\udcff"),
    "multipart as text": lambda: part("multipart/mixed", "text"),
    "multipart without payload": lambda: MIMEBase("multipart", "mixed"),
}


@pytest.mark.parametrize("kind", NESTED)
@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
def test_a_type_of_messages_or_multiparts_is_sent_as_django_does_or_refused(kind, content) -> None:
    require_as_django(lambda: ("report", content, kind))


@pytest.mark.parametrize("make", PARTS.values(), ids=PARTS)
def test_a_mime_object_is_sent_as_django_does_or_refused(make) -> None:
    require_as_django(make)


def require_as_django(make: Callable[[], Any]) -> None:
    def message() -> EmailMessage:
        made = corpus.plain(headers={"Message-ID": "<1@example.com>"})
        made.attachments = [make()]
        return made

    try:
        expected = corpus.wire_bytes(message())
    except Exception:  # noqa: BLE001 - Python's generator raises what comes
        with pytest.raises((TypeError, ValueError)):
            check(message())
        return
    check(message())
    stored = dump(message())
    loaded = load(stored.envelope, {blob.digest: blob.content for blob in stored.blobs})
    assert corpus.normalise(wire.build(loaded)) == corpus.normalise(expected)
