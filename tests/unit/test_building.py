"""A mail built with less ado has the bytes that Django's own backend sends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.core.mail import EmailMessage, EmailMultiAlternatives
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from django_epica_mail import addresses, building
from django_epica_mail.serialization import raw_message
from tests import corpus

BUILT_BY_DJANGO = {
    name: make for name, make in corpus.CORPUS if not raw_message.builds_itself(make())
}

# Around the length at which lines are folded, and with what only looks plain.
words = st.text("aZ09 ,;:<>@=?\"()[]._-\\'", max_size=90)
line = words | st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), max_size=90)
address = (
    st.from_regex(addresses._PLAIN, fullmatch=True)
    | st.emails()
    | st.builds("{} <{}>".format, words, st.emails())
)
message_id = st.from_regex(r"<[a-z0-9.-]{1,40}@[a-z0-9.-]{1,40}>", fullmatch=True) | line
header = st.tuples(st.sampled_from(["X-Order", "x-b", "List-Id", "Reply-To", "Message-ID"]), line)


def outcome(build: Callable[[EmailMessage], bytes], message: EmailMessage) -> bytes | str:
    """Return what is built, or the kind of the error."""
    try:
        return corpus.normalise(build(message))
    except Exception as error:  # noqa: BLE001 - both must raise it
        return type(error).__name__


@pytest.mark.parametrize("make", BUILT_BY_DJANGO.values(), ids=BUILT_BY_DJANGO)
def test_every_kind_of_message_is_built_as_by_django(make: Callable[[], EmailMessage]) -> None:
    assert corpus.normalise(building.build(make())) == corpus.normalise(corpus.wire_bytes(make()))


@hypothesis_settings(max_examples=200, deadline=None)
@given(
    subject=line,
    sender=address,
    to=st.lists(address, min_size=1, max_size=3),
    reply_to=st.lists(address, max_size=1),
    headers=st.lists(header, max_size=2).map(dict),
    own_id=st.none() | message_id,
    html=st.none() | st.just("<p>ğ</p>"),
)
def test_every_header_is_written_as_by_django(
    subject: str,
    sender: str,
    to: list[str],
    reply_to: list[str],
    headers: dict[str, Any],
    own_id: str | None,
    html: str | None,
) -> None:
    if own_id is not None:
        headers["Message-ID"] = own_id

    def make() -> EmailMessage:
        made = EmailMultiAlternatives(
            subject, "Body", sender, to, reply_to=reply_to, headers=dict(headers)
        )
        if html is not None:
            made.attach_alternative(html, "text/html")
        return made

    assert outcome(building.build, make()) == outcome(raw_message.render, make())


def test_parts_of_one_message_do_not_leak_into_the_next() -> None:
    first = EmailMultiAlternatives("One", "Text", "from@example.com", ["to@example.com"])
    first.attach("a.txt", "content", "text/plain")
    second = EmailMessage("Two", "Text", "from@example.com", ["to@example.com"])
    before = corpus.normalise(building.build(second))
    building.build(first)
    assert corpus.normalise(building.build(second)) == before
