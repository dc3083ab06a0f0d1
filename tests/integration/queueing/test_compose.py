"""The messages that calls and entries become, and the arguments that are refused."""

from __future__ import annotations

from datetime import timedelta
from email import message_from_bytes, policy
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core import mail
from django.utils.translation import gettext_lazy

from django_epica_mail.models import EmailLog
from django_epica_mail.queueing.compose import compose
from django_epica_mail.tasks import (
    send_bulk_templated_emails,
    send_email_async,
    send_templated_email_async,
)


@pytest.fixture
def templates(settings: Any, tmp_path: Path) -> Path:
    """Write the site's own templates; return their folder."""
    (tmp_path / "emails").mkdir()
    (tmp_path / "emails" / "hello_subject.txt").write_text("Hello {{ user.username }}\n")
    (tmp_path / "emails" / "hello.txt").write_text("Dear {{ user.username }} & co")
    (tmp_path / "emails" / "hello.html").write_text("<p>Dear {{ user.username }}</p>")
    settings.TEMPLATES = [
        {"BACKEND": "django.template.backends.django.DjangoTemplates", "DIRS": [tmp_path]}
    ]
    return tmp_path


def test_every_argument_of_a_call_takes_effect(smtp, deliver, tmp_path) -> None:
    (tmp_path / "terms.txt").write_text("terms")
    result = send_email_async(
        subject="Your order",
        message="Text",
        from_email="Shop <orders@example.com>",
        recipient_list=["to@example.com"],
        html_message="<p>HTML</p>",
        cc=["cc@example.com"],
        bcc=["bcc@example.com"],
        reply_to=["help@example.com"],
        headers={"X-Order": "7"},
        attachments=[("a.bin", b"\0\1", "application/x-a"), tmp_path / "terms.txt"],
        category="order",
        priority="high",
        queue="orders",
        expires_after=timedelta(hours=1),
        on_unknown="hold",
        tags=["order"],
        metadata={"order": 7},
    )
    log = EmailLog.objects.get(pk=result.id)
    assert (log.category, log.priority, log.queue, log.on_unknown) == ("order", 6, "orders", "hold")
    assert log.expires_at is not None
    assert abs(log.expires_at - log.created_at - timedelta(hours=1)) < timedelta(seconds=5)
    assert deliver("orders") == 1
    (arrived,) = smtp.accepted
    assert arrived.recipients == ("to@example.com", "cc@example.com", "bcc@example.com")
    for part in (b"Reply-To: help@example.com", b"X-Order: 7", b"<p>HTML</p>", b"terms.txt"):
        assert part in arrived.content
    assert b"bcc@" not in arrived.content


def test_the_default_sender_is_the_sites(smtp, deliver) -> None:
    send_email_async("Subject", "Text", None, ["to@example.com"])
    deliver()
    assert smtp.accepted[0].sender == "shop@example.com"


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"recipient_list": "to@example.com"}, TypeError, "recipient_list must be a list"),
        ({"cc": "cc@example.com"}, TypeError, "cc must be a list of addresses; it is 'cc@"),
        ({"recipient_list": []}, ValueError, "no recipient"),
        ({"headers": ["X"]}, TypeError, "headers must be a dict; it is "),
        ({"prioritty": 9}, TypeError, r"There is no option 'prioritty'\. The options are: subject"),
        ({"context": {}}, TypeError, "give a template_name too"),
        ({"message": None}, TypeError, "There is nothing to send"),
        ({"priority": 10}, ValueError, "priority must be 0 to 9"),
        ({"language": "xx"}, ValueError, "language must be a code from LANGUAGES"),
        ({"subject": "a\nb"}, ValueError, "newline|carriage return"),
        ({"expires_after": 0}, ValueError, "expires_after must be above 0 .*; it is 0"),
    ],
)
def test_wrong_arguments_are_refused_and_nothing_is_written(
    given: Any, error: type[Exception], words: str, smtp
) -> None:
    call = {
        "subject": "Subject",
        "message": "Text",
        "from_email": None,
        "recipient_list": ["to@example.com"],
    }
    with pytest.raises(error, match=words):
        send_email_async(**{**call, **given})
    assert not EmailLog.objects.exists()


def test_lazy_text_is_translated_to_the_language_of_the_call() -> None:
    lazy = gettext_lazy("Password")
    message, _ = compose(
        {"subject": lazy, "message": lazy, "recipient_list": ["a@example.com"], "language": "tr"}
    )
    assert (message.subject, message.body) == ("Parola", "Parola")


def test_a_template_is_rendered_at_once_with_any_object(smtp, deliver, templates) -> None:
    result = send_templated_email_async(
        subject=None,
        template_name="emails/hello",
        context={"user": User(username="Ay<şe>")},
        from_email=None,
        recipient_list=["to@example.com"],
    )
    assert EmailLog.objects.get(pk=result.id).subject == "Hello Ay<şe>"
    (templates / "emails" / "hello.html").unlink()
    deliver()
    message = message_from_bytes(smtp.accepted[0].content, policy=policy.default)
    text, html = (part.get_content() for part in message.iter_parts())
    assert text.strip() == "Dear Ay<şe> & co"
    assert html.strip() == "<p>Dear Ay&lt;şe&gt;</p>"


def test_a_subject_overrides_that_of_the_template(templates) -> None:
    given = {"template_name": "emails/hello", "recipient_list": ["a@example.com"]}
    assert compose({**given, "subject": "Own"})[0].subject == "Own"


def test_a_template_without_a_subject_needs_one(templates) -> None:
    given = {"template_name": "emails/hello", "recipient_list": ["a@example.com"]}
    (templates / "emails" / "hello_subject.txt").unlink()
    with pytest.raises(ValueError, match=r"has no subject.*_subject\.txt"):
        compose(given)


def test_the_options_name_the_template_that_was_found(templates, settings) -> None:
    _, options = compose(
        {
            "template_name": ["emails/none", "emails/hello"],
            "context": {"user": User(username="A")},
            "recipient_list": ["a@example.com"],
        }
    )
    assert options.template == "emails/hello"


def test_one_template_goes_to_many_each_with_its_own_context(
    smtp, deliver, templates, django_assert_max_num_queries
) -> None:
    recipients = ((f"{name}@example.com", {"user": User(username=name)}) for name in "abc")
    with django_assert_max_num_queries(8):
        batch = send_bulk_templated_emails(None, "emails/hello", recipients, priority="low")
    assert (batch.total, batch.accepted) == (3, 3)
    assert set(batch.emails.values_list("queue", "priority")) == {("bulk_emails", 0)}
    deliver("bulk_emails")
    assert sorted(m.header("Subject") for m in smtp.accepted) == ["Hello a", "Hello b", "Hello c"]


def test_a_rule_for_a_template_matches_bulk_mail_too(smtp, templates, epica_mail) -> None:
    epica_mail(ROUTES=[{"match": {"template": "emails/hello"}, "queue": "news"}])
    recipients = [("a@example.com", {"user": User(username="a")})]
    batch = send_bulk_templated_emails(None, "emails/hello", recipients)
    assert batch.emails.get().queue == "news"


def test_a_wrong_option_is_refused_before_recipients_are_read(db) -> None:
    with pytest.raises(ValueError, match="priority must be 0 to 9"):
        send_bulk_templated_emails(None, "emails/hello", iter([]), priority=11)


def test_a_call_sends_nothing_past_the_queue(smtp) -> None:
    send_email_async("Subject", "Text", None, ["to@example.com"])
    assert mail.outbox == []
    assert smtp.accepted == []
