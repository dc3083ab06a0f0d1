"""Text typed by a visitor never becomes a header, a recipient or an SMTP command.

Each value is put in each field of each way to send. Either the call refuses it and stores nothing,
or the mail arrives with exactly the intended headers and recipients.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from django.core.mail import EmailMessage, EmailMultiAlternatives, send_mass_mail

from devservers.smtp import SMTPServer
from django_epica_mail import outbox, tasks
from django_epica_mail.backends import EmailBackend
from django_epica_mail.models import EmailLog, EmailRecipient

NEWLINES = {"LF": "\n", "CR": "\r", "CRLF": "\r\n", "folded": "\r\n "}
LIKE_NEWLINES = {
    "VT": "\x0b",
    "FF": "\x0c",
    "FS": "\x1c",
    "NEL": "\x85",
    "LS": "\u2028",
    "PS": "\u2029",
    "NUL": "\0",
}
INJECTED = "X-Injected: yes"

IN_HEADERS: dict[str, Callable[[str], dict[str, Any]]] = {
    "subject": lambda end: {"subject": f"Hi{end}{INJECTED}"},
    "sender's name": lambda end: {"from_email": f"Shop{end}{INJECTED} <shop@example.com>"},
    "sender": lambda end: {"from_email": f"shop@example.com{end}{INJECTED}"},
    "recipient's name": lambda end: {"recipient_list": [f"A{end}{INJECTED} <a@example.com>"]},
    "recipient": lambda end: {"recipient_list": [f"a@example.com{end}{INJECTED}"]},
    "quoted name": lambda end: {"recipient_list": [f'"A{end}{INJECTED}" <a@example.com>']},
    "command": lambda end: {"recipient_list": [f"a@example.com>{end}RCPT TO:<evil@example.com"]},
    "cc": lambda end: {"cc": [f"C{end}{INJECTED} <c@example.com>"]},
    "bcc": lambda end: {"bcc": [f"b@example.com{end}{INJECTED}"]},
    "bcc's name": lambda end: {"bcc": [f"B{end}{INJECTED} <b@example.com>"]},
    "reply-to": lambda end: {"reply_to": [f"R{end}{INJECTED} <r@example.com>"]},
    "header's value": lambda end: {"headers": {"X-Order": f"7{end}{INJECTED}"}},
    "header's name": lambda end: {"headers": {f"X-Order: 7{end}X-Injected": "yes"}},
    "Message-ID": lambda end: {"headers": {"Message-ID": f"<1@example.com>{end}{INJECTED}"}},
    "To header": lambda end: {"headers": {"To": f"list@example.com{end}{INJECTED}"}},
    "file name": lambda end: {"attachments": [(f"a.txt{end}{INJECTED}", "content", "text/plain")]},
    "media type": lambda end: {"attachments": [("a.x", b"c", f"text/x-a{end}{INJECTED}")]},
}
ELSEWHERE: dict[str, Callable[[str], dict[str, Any]]] = {
    "tags": lambda end: {"tags": [f"t{end}{INJECTED}"]},
    "metadata": lambda end: {"metadata": {f"k{end}{INJECTED}": f"v{end}{INJECTED}"}},
    "category": lambda end: {"category": f"c{end}{INJECTED}"},
    "idempotency key": lambda end: {"idempotency_key": f"k{end}{INJECTED}"},
    "body": lambda end: {"message": f"Hello{end}{INJECTED}"},
    "HTML": lambda end: {"html_message": f"<p>Hello{end}{INJECTED}</p>"},
}

Given = dict[str, Any]


def _message(given: Given) -> EmailMessage:
    message = EmailMultiAlternatives(
        given["subject"], given["message"], given["from_email"], given["recipient_list"],
        **{name: given[name] for name in ("cc", "bcc", "reply_to", "headers") if name in given},
    )  # fmt: skip
    message.attachments = list(given.get("attachments", ()))
    if "html_message" in given:
        message.attach_alternative(given["html_message"], "text/html")
    for name in ("tags", "metadata"):
        if name in given:
            setattr(message, name, given[name])
    return message


def by_message(given: Given) -> None:
    _message(given).send()


def by_outbox(given: Given) -> None:
    names = ("category", "idempotency_key")
    outbox.enqueue(_message(given), **{name: given[name] for name in names if name in given})


def by_outbox_many(given: Given) -> None:
    names = ("category", "idempotency_key")
    options = {name: given[name] for name in names if name in given}
    outbox.enqueue_many([_message(given)], queue="emails", **options)


def by_call(given: Given) -> None:
    tasks.send_email_async(**given)


def by_bulk(given: Given) -> None:
    done = tasks.send_bulk_emails_task([{**given, "queue": "emails"}])
    if done["refused"]:
        raise ValueError(done["refused"])


WAYS = (by_message, by_outbox, by_outbox_many, by_call, by_bulk)


def attempt(way: Callable[[Given], None], given: Given) -> bool:
    """Send in one way; return whether the call was refused."""
    usual = {"subject": "Hi", "message": "Body", "from_email": "shop@example.com"}
    try:
        way({**usual, "recipient_list": ["a@example.com"], **given})
    except (ValueError, TypeError):
        assert not EmailLog.objects.exists()
        assert not EmailRecipient.objects.exists()
        return True
    return False


def require_nothing_injected(smtp: SMTPServer) -> None:
    for mail in smtp.accepted:
        head = re.split(rb"\r\n\r\n|\n\n|\r\r", mail.content)[0]
        lines = re.split(rb"[\r\n\v\f\x1c\x85]", head)
        assert not [line for line in lines if line.lower().startswith((b"x-injected", b"bcc"))]
        assert "evil@example.com" not in mail.recipients
        meant = {"a@example.com", "b@example.com", "c@example.com"}
        assert set(mail.recipients) <= meant
        assert mail.sender == "shop@example.com"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("field", IN_HEADERS)
def test_a_newline_in_a_header_field_is_refused_in_the_call(smtp, way, field) -> None:
    for end in NEWLINES.values():
        assert attempt(way, IN_HEADERS[field](end)), repr(end)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("field", IN_HEADERS)
def test_characters_resembling_a_newline_make_no_header(smtp, deliver, way, field) -> None:
    for end in LIKE_NEWLINES.values():
        if not attempt(way, IN_HEADERS[field](end)):
            deliver()
            EmailLog.objects.all().delete()
    require_nothing_injected(smtp)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("field", ELSEWHERE)
def test_a_newline_outside_headers_stays_in_its_field(smtp, deliver, way, field) -> None:
    accepted = 0
    for end in (*NEWLINES.values(), *LIKE_NEWLINES.values()):
        if not attempt(way, ELSEWHERE[field](end)):
            accepted += 1
            deliver()
            EmailLog.objects.all().delete()
    assert len(smtp.accepted) == accepted
    require_nothing_injected(smtp)


@pytest.mark.parametrize("field", ["subject", "recipient", "sender"])
def test_mass_mail_with_one_bad_message_queues_nothing(smtp, field) -> None:
    good = ("Hi", "Body", "shop@example.com", ["a@example.com"])
    given = {
        "subject": "Hi", "from_email": "shop@example.com", "recipient_list": ["a@example.com"],
        **IN_HEADERS[field]("\n"),
    }  # fmt: skip
    bad = (given["subject"], "Body", given["from_email"], given["recipient_list"])
    with pytest.raises(ValueError, match=r"newline|linefeed"):
        send_mass_mail([good, bad, good])
    assert not EmailLog.objects.exists()


def test_a_subject_rendered_from_a_template_is_one_line(smtp, deliver, settings, tmp_path) -> None:
    (tmp_path / "hi_subject.txt").write_text("Hi {{ name }}")
    (tmp_path / "hi.txt").write_text("Dear {{ name }}")
    settings.TEMPLATES = [
        {"BACKEND": "django.template.backends.django.DjangoTemplates", "DIRS": [tmp_path]}
    ]
    for end in NEWLINES.values():
        name = f"Ann{end}{INJECTED}"
        tasks.send_templated_email_async(
            None, "hi", {"name": name}, "shop@example.com", ["a@example.com"]
        )
    deliver()
    assert [mail.header("Subject") for mail in smtp.accepted] == [f"Hi Ann {INJECTED}"] * 4
    require_nothing_injected(smtp)


def test_a_newline_in_a_backends_options_is_refused(db) -> None:
    for name in ("queue", "transport", "category"):
        for end in NEWLINES.values():
            with pytest.raises(ValueError, match="printable"):
                EmailBackend(**{name: f"x{end}{INJECTED}"})
