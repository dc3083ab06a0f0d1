"""The stored form is portable ASCII JSON and loses nothing of the message."""

from __future__ import annotations

import json

import pytest
from django.core.mail import EmailMessage
from django.utils.translation import gettext_lazy, override
from hypothesis import given
from hypothesis import strategies as st

from django_epica_mail.exceptions import EpicaMailError, UnreadableEnvelope, UnstorableMessage
from django_epica_mail.messages import dump, load


def message(**fields) -> EmailMessage:
    return EmailMessage("Subject", "Body", "from@example.com", ["to@example.com"], **fields)


def round_trip(mail: EmailMessage) -> EmailMessage:
    stored = dump(mail)
    return load(stored.envelope, {blob.digest: blob.content for blob in stored.blobs})


def test_the_envelope_is_ascii_json_with_a_version() -> None:
    mail = message()
    mail.subject = "ğ\0🎉"
    envelope = dump(mail).envelope
    assert envelope.isascii()
    assert json.loads(envelope)["v"] == 1


def test_lazy_text_is_evaluated_in_the_callers_language() -> None:
    mail = message()
    mail.subject = gettext_lazy("Yes")
    with override("tr"):
        stored = dump(mail)
    with override("en"):
        assert load(stored.envelope, {}).subject == "Evet"


def test_an_unstorable_attribute_is_refused_by_name() -> None:
    mail = message()
    mail.callback = print  # type: ignore[attr-defined]
    with pytest.raises(UnstorableMessage, match="callback") as caught:
        dump(mail)
    assert isinstance(caught.value, EpicaMailError)
    assert isinstance(caught.value, ValueError)


def test_a_future_version_is_named_in_the_error() -> None:
    form = json.loads(dump(message()).envelope)
    with pytest.raises(EpicaMailError, match="99"):
        load(json.dumps({**form, "v": 99}), {})


def test_a_missing_class_does_not_lose_the_mail() -> None:
    envelope = dump(message()).envelope.replace("django.core.mail.message", "gone.module")
    assert load(envelope, {}).body == "Body"


def test_equal_attachments_are_stored_once() -> None:
    mail = message()
    mail.attach("a.bin", b"same", "application/zip")
    mail.attach("b.bin", b"same", "application/zip")
    stored = dump(mail)
    assert [blob.content for blob in stored.blobs] == [b"same"]
    assert len(round_trip(mail).attachments) == 2


json_like = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text()
    | st.binary()
    | st.decimals(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=10,
)


@given(st.text(), st.text(), json_like)
def test_any_text_and_any_attribute_survive(subject: str, body: str, value: object) -> None:
    mail = message()
    mail.subject, mail.body = subject, body
    mail.esp_extra = value  # type: ignore[attr-defined]
    back = round_trip(mail)
    assert (back.subject, back.body) == (subject, body)
    assert back.esp_extra == value  # type: ignore[attr-defined]
    assert type(back.esp_extra) is type(value)  # type: ignore[attr-defined]


MARKS = '"' * 600


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("to", [f"{MARKS} <a@example.com>"]),
        ("from_email", f"{MARKS} <a@example.com>"),
        ("subject", "x" * 1000),
        ("extra_headers", {"Reply-To": MARKS}),
        ("extra_headers", {"X-A": "ğ" * 5000}),
    ],
)
@pytest.mark.parametrize("is_attached", [False, True])
def test_text_that_no_call_would_take_is_not_read_from_a_row(name, value, is_attached) -> None:
    mail = message()
    if is_attached:
        mail.attach("", message(), "message/rfc822")
    form = json.loads(dump(mail).envelope)
    written = form["attachments"][0]["message"] if is_attached else form
    written["state"][name] = value
    with pytest.raises(UnreadableEnvelope):
        load(json.dumps(form), {})
