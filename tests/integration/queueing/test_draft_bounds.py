"""What is too deep, too large or out of range is refused in the caller, with value and remedy."""

from __future__ import annotations

import time
from datetime import datetime, timedelta, timezone
from email import message_from_bytes, policy
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText
from typing import Any

import django
import pytest
from django.core.mail import EmailMessage, EmailMultiAlternatives
from django.urls import include, path

from django_epica_mail import outbox, tasks
from django_epica_mail.exceptions import InvalidMessage
from django_epica_mail.messages.bounds import MAX_DEPTH
from django_epica_mail.models import EmailLog
from django_epica_mail.queueing import compose

pytestmark = pytest.mark.django_db


def message(**fields: Any) -> EmailMessage:
    given = {"from_email": "from@example.com", "to": ["to@example.com"], "body": "B", **fields}
    return EmailMessage("S", **given)


def nested_parts(depth: int) -> EmailMessage:
    part: MIMEText | MIMEMultipart = MIMEText("x")
    for _ in range(depth - 1):
        part, inner = MIMEMultipart(), part
        part.attach(inner)
    mail = message()
    mail.attachments.append(part)  # attach() warns of these classes
    return mail


def nested_messages(depth: int) -> EmailMessage:
    mail = message()
    for _ in range(depth):
        mail, inner = message(), mail
        mail.attach("x.eml", inner, "message/rfc822")
    return mail


def nested_header(depth: int) -> EmailMessage:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return message(headers={"X-Deep": value})


class Signed(EmailMessage):
    """A message that builds its own MIME."""

    def message(self, **_: Any) -> Any:
        return nested_parts(2000).attachments[0]


def signed(_: int) -> EmailMessage:
    return Signed("S", "B", "from@example.com", ["to@example.com"])


@pytest.mark.parametrize("nested", [nested_parts, nested_messages, nested_header, signed])
def test_a_message_nested_too_deeply_is_a_value_error(smtp, nested) -> None:
    with pytest.raises(ValueError, match="nested"):
        outbox.enqueue(nested(2000), transport="smtp")
    with pytest.raises(ValueError, match="nested"):
        outbox.enqueue_many([message(), nested(2000)])
    assert not EmailLog.objects.exists()


def test_parts_nested_as_deeply_as_allowed_are_delivered(smtp, deliver) -> None:
    outbox.enqueue(nested_parts(MAX_DEPTH), transport="smtp")
    assert deliver() == 1
    assert smtp.accepted[0].content.count(b"multipart/mixed") == MAX_DEPTH


def test_html_nested_too_deeply_for_its_text_to_be_derived_is_a_value_error(
    smtp, settings, tmp_path
) -> None:
    pytest.importorskip("inscriptis")
    (tmp_path / "deep.html").write_text("<b>" * 2000 + "x")
    (engine,) = settings.TEMPLATES
    settings.TEMPLATES = [{**engine, "DIRS": [tmp_path, *engine.get("DIRS", ())]}]
    with pytest.raises(ValueError, match="nested"):
        compose.compose(
            {"template_name": "deep", "subject": "S", "recipient_list": ["a@b.example"]}
        )
    with pytest.raises(ValueError, match="nested"):
        tasks.send_templated_email_async("S", "deep", {}, None, ["a@b.example"])


AHEAD, BEHIND = timezone(timedelta(hours=14)), timezone(timedelta(hours=-12))


@pytest.mark.parametrize("name", ["send_at", "expires_at"])
@pytest.mark.parametrize(
    "moment",
    [
        datetime.max.replace(tzinfo=timezone.utc),
        datetime.max.replace(tzinfo=BEHIND),
        datetime.min.replace(tzinfo=AHEAD),
        datetime(9990, 1, 1, tzinfo=timezone.utc),
    ],
)
def test_a_time_that_no_database_can_store_is_a_value_error(smtp, name, moment) -> None:
    with pytest.raises(ValueError, match=f"{name} must be in the years"):
        outbox.enqueue(message(), transport="smtp", **{name: moment})


LONG = "x" * 10_000_000


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"headers": {"X-A": LONG}}, "header 'X-A' has 10000000 characters, but at most 32768"),
        ({"headers": {"X-A": "ş" * 5000}}, "header 'X-A' has 5000 characters, but at most 4096"),
        ({"headers": {LONG: "x"}}, "name of a header has"),
        ({"headers": {"Reply-To": ",".join(["é " * 250] * 8)}}, "header 'Reply-To' has 4007"),
        ({"headers": {"Resent-From": '"' * 2100}}, "address in the header 'Resent-From'"),
        ({"headers": {"To": '""' * 10_000 + " <a@example.com>"}}, "address in the header 'To'"),
        ({"to": ['""' * 10_000 + " <a@example.com>"]}, "address in to has 20016 characters"),
        ({"from_email": '""' * 10_000 + " <a@example.com>"}, "address in from_email has"),
        ({"cc": [LONG]}, "address in cc"),
        ({"bcc": [LONG]}, "address in bcc"),
        ({"reply_to": [LONG]}, "address in reply_to"),
    ],
)
def test_text_that_is_too_long_is_refused_before_it_is_parsed(smtp, fields, words) -> None:
    started = time.monotonic()
    with pytest.raises(InvalidMessage, match=words) as refused:
        outbox.enqueue(message(**fields), transport="smtp")
    assert time.monotonic() - started < 1
    assert len(str(refused.value)) < 400


def test_a_subject_of_ten_million_characters_is_refused(smtp) -> None:
    mail = message()
    mail.subject = LONG
    with pytest.raises(InvalidMessage, match="subject has 10000000 characters, but at most 998"):
        outbox.enqueue(mail, transport="smtp")
    mail.subject = LONG[:998]
    outbox.enqueue(mail, transport="smtp")


def test_html_to_be_rewritten_has_a_bound(smtp, epica_mail, settings) -> None:
    mail = EmailMultiAlternatives("S", "B", "from@example.com", ["to@example.com"])
    mail.attach_alternative("<p>" * 1_000_000, "text/html")
    outbox.enqueue(mail, transport="smtp")
    epica_mail(BASE_URL="https://shop.example")
    settings.ROOT_URLCONF = (path("mail/", include("django_epica_mail.urls")),)
    with pytest.raises(InvalidMessage, match="HTML of a mail with tracked links"):
        outbox.enqueue(mail, transport="smtp", track_opens=True)


HOSTILE_LETTERS = {
    "not ASCII": b"To: " + "é ".encode() * 6_000,
    "quotation marks": b"To: " + b'"' * 40_000,
    "on short lines": b"To: " + b"\r\n ".join([b'"' * 70] * 500),
    "in a part": b"Content-Type: multipart/mixed; boundary=b\r\n\r\n"
    + b"--b\r\nTo: %s\r\n\r\nx\r\n" % ("é ".encode() * 200) * 30
    + b"--b--",
    "many headers": b"X: y\r\n" * 30_000 + b"Z: z",
}
if django.VERSION >= (6, 0):
    HOSTILE_LETTERS["one that fails"] = b"MIME-Version: " + b"(" * 500


@pytest.mark.parametrize("letter", HOSTILE_LETTERS.values(), ids=HOSTILE_LETTERS)
def test_an_uploaded_letter_that_takes_long_to_parse_is_sent_as_a_file(
    smtp, deliver, letter
) -> None:
    letter += b"\r\n\r\nBody\r\n"
    mail = message()
    mail.attach("letter.eml", letter)  # as a site does with what somebody has uploaded
    started = time.process_time()
    outbox.enqueue(mail, transport="smtp")
    assert deliver() == 1
    assert time.process_time() - started < 4  # seconds; before, minutes to hours in the worker
    (_, part) = message_from_bytes(smtp.accepted[0].content).get_payload()
    assert part.get_content_type() == "application/octet-stream"
    assert part.get_filename() == "letter.eml"
    assert part.get_payload(decode=True) == letter


def test_an_ordinary_letter_is_sent_as_a_letter(smtp, deliver) -> None:
    names = b", ".join(b"Name %d <n%d@example.com>" % (it, it) for it in range(60))
    letter = b"From: =?utf-8?q?=C3=A7?= <c@example.com>\r\nTo: " + names + b"\r\n\r\nB\r\n"
    mail = message()
    mail.attach("letter.eml", letter)
    outbox.enqueue(mail, transport="smtp")
    assert deliver() == 1
    assert b"Content-Type: message/rfc822" in smtp.accepted[0].content


@pytest.mark.skipif(django.VERSION < (6, 0), reason="Django attaches no such object")
def test_a_part_whose_headers_take_long_to_fold_is_refused(smtp) -> None:
    mail = message()
    letter = HOSTILE_LETTERS["in a part"] + b"\r\n"
    mail.attachments.append(message_from_bytes(letter, policy=policy.default))
    started = time.process_time()
    with pytest.raises(InvalidMessage, match="too long to be written soon"):
        outbox.enqueue(mail, transport="smtp")
    assert time.process_time() - started < 1
