"""Attachments set directly on a message are normalised as ``attach()`` would."""

from __future__ import annotations

from typing import Any

import pytest
from django.core.mail import EmailAlternative, EmailMessage
from django.utils.functional import SimpleLazyObject, lazystr
from hypothesis import given
from hypothesis import strategies as st

from django_epica_mail.messages import check, dump, load
from django_epica_mail.messages.validation import alternatives, attachments
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


def test_a_list_set_to_none_counts_as_empty() -> None:
    message: Any = corpus.html()
    message.attachments = message.alternatives = None
    assert (attachments(message), alternatives(message)) == ([], [])
    check(message)
    stored = dump(message)
    assert load(stored.envelope, {}).attachments == []
    loaded = corpus.wire_bytes(load(stored.envelope, {}))
    assert corpus.normalise(loaded) == corpus.normalise(corpus.wire_bytes(message))
