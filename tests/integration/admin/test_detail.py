"""The page of one mail: its story for those who may look, its content for those who may read."""

from __future__ import annotations

import email
import email.policy
from datetime import timedelta
from email.utils import mktime_tz, parsedate_tz
from typing import Any

import pytest
from cryptography.fernet import Fernet
from django.contrib.auth.models import Permission, User
from django.core.mail import EmailMessage, EmailMultiAlternatives
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from devservers.smtp_faults import refuse
from django_epica_mail import models, outbox
from django_epica_mail.admin import content as admin_content
from django_epica_mail.delivery import gates
from django_epica_mail.lifecycle import Status
from django_epica_mail.models import EmailEvent, EmailLog
from django_epica_mail.retry import Failure, Kind


def client_of(*permissions: str) -> Client:
    user = User.objects.create_user("-".join(permissions) or "plain", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    client = Client()
    client.force_login(user)
    return client


@pytest.fixture
def reader(site: None) -> Client:
    """Return the browser of a person who may read mails."""
    return client_of("view_emaillog", "view_content")


@pytest.fixture
def viewer(site: None) -> Client:
    """Return the browser of a person who may look at mails, and not read them."""
    return client_of("view_emaillog")


def text_of(client: Client, mail: EmailLog, **query: str) -> str:
    page = client.get(reverse("admin:epica_mail_emaillog_change", args=[mail.pk]), query)
    assert page.status_code == 200
    return page.content.decode()


def address(name: str, *args: Any) -> str:
    return reverse(f"admin:epica_mail_emaillog_{name}", args=args)


@pytest.fixture
def letter(db: None) -> EmailLog:
    """Queue a mail of text, HTML and two attachments."""
    message = EmailMultiAlternatives(
        "Sipariş özeti",
        "The plain words & <b>no markup</b>",
        None,
        ["Ayşe <ayse@example.com>"],
        bcc=["hidden@example.com"],
        headers={"X-Order": "4711"},
    )
    message.attach_alternative("<p>The <b>HTML</b> words</p>", "text/html")
    message.attach("Fatura ğ.pdf", b"%PDF-1.4\x00", "application/pdf")
    message.attach("page.html", "<script>alert(1)</script>", "text/html")
    return outbox.enqueue(message, transport="smtp")


def test_the_timeline_tells_each_try_with_its_worker_and_the_servers_words(
    viewer, smtp, queue_mail, deliver, travel
) -> None:
    smtp.inject(refuse("rcpt", 451, "4.3.0 Come back later", times=1))
    mail = queue_mail()
    deliver()
    travel(minutes=6)
    deliver()
    text = text_of(viewer, mail)
    mail.refresh_from_db()
    story = ("Queued", "Try 1: refused for now", "451 4.3.0 Come back later", "Try 2: accepted")
    places = [text.index(words) for words in story]
    assert places == sorted(places)
    assert f"worker {mail.worker}" in text
    assert "by the transport “smtp”" in text


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (lambda mail: None, "waits for a worker"),
        (lambda mail: outbox.pause(queue="emails"), "The queue “emails” is paused."),
        (lambda mail: outbox.pause(transport="smtp"), "“smtp” is held back (paused)"),
        (
            lambda mail: gates.trip("smtp", Failure(kind=Kind.OUTAGE, reply="No route"), "default"),
            "“smtp” is held back (out of order: No route)",
        ),
        (
            lambda mail: EmailLog.objects.update(transport="gone"),
            "There is no transport “gone” in the settings.",
        ),
        (
            lambda mail: EmailLog.objects.update(due_at=timezone.now() + timedelta(days=1)),
            "It is due at",
        ),
        (
            lambda mail: EmailLog.objects.update(status=Status.UNKNOWN, pending=None),
            "a person decides",
        ),
        (
            lambda mail: EmailLog.objects.update(status=Status.SENDING, worker="host:1"),
            "A worker is sending it: host:1.",
        ),
    ],
)
def test_a_mail_that_is_not_at_its_end_says_what_it_waits_for(
    viewer, queue_mail, prepare, words
) -> None:
    mail = queue_mail()
    prepare(mail)
    assert words in text_of(viewer, mail)


def test_a_mail_that_is_sent_waits_for_nothing(viewer, smtp, queue_mail, deliver) -> None:
    mail = queue_mail()
    deliver()
    assert "epica-notice epica-sent" not in text_of(viewer, mail)


def test_who_may_look_sees_recipients_and_data_and_nothing_of_the_content(viewer, letter) -> None:
    text = text_of(viewer, letter)
    assert "ayse@example.com" in text
    assert "hidden@example.com" in text
    assert letter.message_id.strip("<>") in text
    for secret in ("plain words", "HTML", "X-Order", "Fatura", "/raw/", "iframe"):
        assert secret not in text
    assert "You may not see what this e-mail says" in text


def test_who_may_read_sees_text_headers_and_attachments(reader, letter) -> None:
    text = text_of(reader, letter)
    assert "The plain words &amp; &lt;b&gt;no markup&lt;/b&gt;" in text
    assert "Sipariş özeti" in text
    assert '<th scope="row">X-Order</th><td>4711</td>' in text
    assert "Fatura ğ.pdf" in text
    assert "The <b>HTML</b> words" not in text  # but in the frame
    assert f'sandbox="" referrerpolicy="no-referrer" src="{address("html", letter.pk)}' in text


def test_the_frame_is_as_wide_dark_and_colourful_as_the_address_says(reader, letter) -> None:
    plain = text_of(reader, letter)
    assert "epica-frame-desktop epica-frame-light" in plain
    assert "images=0" in plain
    assert 'href="?width=phone#epica-preview"' in plain
    changed = text_of(reader, letter, width="phone", theme="dark", images="1")
    assert "epica-frame-phone epica-frame-dark" in changed
    assert f"{address('html', letter.pk)}?images=1" in changed
    odd = text_of(reader, letter, width='"><script>', theme="x", images="yes")
    assert "epica-frame-desktop epica-frame-light" in odd
    assert '<script>"' not in odd


def test_the_html_is_served_with_a_policy_under_which_it_can_do_nothing(reader, letter) -> None:
    page = reader.get(address("html", letter.pk))
    assert page.content == b"<p>The <b>HTML</b> words</p>"
    policy = page["Content-Security-Policy"].split("; ")
    assert policy[:2] == ["sandbox", "default-src 'none'"]
    assert "img-src data:" in policy
    assert {"base-uri 'none'", "form-action 'none'", "frame-ancestors 'self'"} <= set(policy)
    assert page["X-Frame-Options"] == "SAMEORIGIN"
    assert page["Referrer-Policy"] == "no-referrer"
    assert page["X-Content-Type-Options"] == "nosniff"
    assert "no-store" in page["Cache-Control"]


def test_remote_images_are_loaded_only_where_they_are_asked_for(reader, letter) -> None:
    page = reader.get(address("html", letter.pk), {"images": "1"})
    policy = page["Content-Security-Policy"].split("; ")
    assert "img-src data: https: http:" in policy
    assert policy[:2] == ["sandbox", "default-src 'none'"]


def test_an_attachment_is_saved_and_never_opened(reader, letter) -> None:
    pdf, page = letter.attachments.order_by("pk")
    got = reader.get(address("attachment", letter.pk, pdf.pk))
    assert b"".join(got.streaming_content) == b"%PDF-1.4\x00"
    assert got["Content-Disposition"].startswith("attachment; filename*=utf-8''Fatura%20%C4%9F.pdf")
    html = reader.get(address("attachment", letter.pk, page.pk))
    assert html["Content-Type"] == "application/octet-stream"
    assert html["X-Content-Type-Options"] == "nosniff"
    assert html["Content-Security-Policy"].startswith("sandbox")


def test_the_attachment_of_another_mail_is_not_found(reader, letter, queue_mail) -> None:
    attachment = letter.attachments.first()
    assert reader.get(address("attachment", queue_mail().pk, attachment.pk)).status_code == 404


def test_the_raw_message_is_the_one_that_was_sent(reader, smtp, letter, deliver) -> None:
    deliver()
    got = reader.get(address("raw", letter.pk))
    assert got["Content-Disposition"] == f'attachment; filename="{letter.pk}.eml"'
    raw = email.message_from_bytes(b"".join(got.streaming_content), policy=email.policy.default)
    sent = email.message_from_bytes(smtp.accepted[0].content, policy=email.policy.default)
    assert raw["Message-ID"] == sent["Message-ID"] == letter.message_id
    for name in ("Subject", "From", "To", "X-Order"):
        assert str(raw[name]) == str(sent[name])
    parts = [part.get_content_type() for part in sent.walk()]
    assert [part.get_content_type() for part in raw.walk()] == parts
    bodies = [part.get_content() for part in sent.walk() if not part.is_multipart()]
    assert [part.get_content() for part in raw.walk() if not part.is_multipart()] == bodies
    dates = [mktime_tz(parsedate_tz(str(it["Date"])) or ()) for it in (raw, sent)]
    assert abs(dates[0] - dates[1]) < 60


def test_forgotten_content_is_said_to_be_forgotten(reader, queue_mail) -> None:
    mail = queue_mail(keep_content="until_sent")
    EmailLog.objects.update(envelope="")
    assert "The content is forgotten" in text_of(reader, mail)
    for name in ("html", "raw"):
        assert reader.get(address(name, mail.pk)).status_code == 404


def test_unreadable_content_is_no_error_of_the_page(reader, queue_mail) -> None:
    mail = queue_mail()
    EmailLog.objects.update(envelope='{"v": 99}')
    assert "stored in version 99" in text_of(reader, mail)
    for name in ("html", "raw"):
        assert reader.get(address(name, mail.pk)).status_code == 404


def test_a_mail_of_text_alone_has_no_frame(reader, queue_mail) -> None:
    mail = queue_mail()
    assert "<iframe" not in text_of(reader, mail)
    assert reader.get(address("html", mail.pk)).status_code == 404


def test_a_mail_whose_body_is_html_is_shown_in_the_frame(db) -> None:
    message = EmailMessage("S", "<p>body</p>", None, ["a@example.com"])
    message.content_subtype = "html"
    content = admin_content.read_content(outbox.enqueue(message, transport="smtp"))
    assert (content.text, content.html) == ("", "<p>body</p>")


def test_what_a_provider_told_is_part_of_the_story(viewer, smtp, queue_mail, deliver) -> None:
    mail = queue_mail()
    deliver()
    mail.refresh_from_db()
    later = mail.finished_at + timedelta(seconds=5)
    EmailEvent.objects.create(
        email=mail,
        key="1",
        kind="bounced",
        at=later,
        created_at=later,
        source="amazon_ses",
        address="to@example.com",
        reply="550 mailbox unavailable",
    )
    text = text_of(viewer, mail)
    story = ("Queued", "Try 1: accepted", "Bounced", "amazon_ses", "550 mailbox unavailable")
    places = [text.index(words) for words in story]
    assert places == sorted(places)


def test_encrypted_content_can_be_read_by_people_and_sent_again(
    reader, epica_mail, settings
) -> None:
    epica_mail(ENCRYPTION_KEYS=[Fernet.generate_key().decode()])
    message = EmailMessage("S", "The secret words", None, ["a@example.com"])
    message.attach("a.bin", b"secret bytes", "application/octet-stream")
    mail = outbox.enqueue(message, transport="smtp")
    attachment = mail.attachments.get()
    assert "secret" not in mail.envelope
    assert "The secret words" in text_of(reader, mail)
    download = reader.get(address("attachment", mail.pk, attachment.pk))
    assert b"".join(download.streaming_content) == b"secret bytes"
    EmailLog.objects.update(status=Status.SENT, pending=None)
    (again,) = outbox.send_again([mail.pk])
    assert "secret" not in again.envelope
    assert models.message_of(again).attachments[0].content == b"secret bytes"
    epica_mail(ENCRYPTION_KEYS=[Fernet.generate_key().decode()])
    assert "The content cannot be read: MissingKey" in text_of(reader, mail)
    assert reader.get(address("attachment", mail.pk, attachment.pk)).status_code == 404
    assert reader.get(address("raw", mail.pk)).status_code == 404
    assert outbox.send_again([mail.pk]) == []


class SignedMessage(EmailMultiAlternatives):
    """Builds its own MIME, and so is kept as bytes."""

    def message(self, **arguments: Any) -> Any:
        mime = super().message(**arguments)
        mime["X-Signature"] = "signed"
        return mime


def test_a_mail_that_is_kept_as_bytes_can_be_read_too(reader) -> None:
    message = SignedMessage("Signed", "plain ğ", None, ["a@example.com"])
    message.attach_alternative("<p>rich ğ</p>", "text/html")
    mail = outbox.enqueue(message, transport="smtp")
    content = admin_content.read_content(mail)
    assert (content.text.strip(), content.html.strip()) == ("plain ğ", "<p>rich ğ</p>")
    assert ("X-Signature", "signed") in content.headers
    assert "plain ğ" in text_of(reader, mail)
    assert b"X-Signature: signed" in admin_content.as_sent(mail)


def test_a_mail_to_very_many_is_shown_with_some_of_them(viewer, queue_mail) -> None:
    mail = queue_mail(*(f"r{number}@example.com" for number in range(250)))
    text = text_of(viewer, mail)
    assert "r199@example.com" in text
    assert "r200@example.com" not in text
    assert "and more" in text


def test_a_page_takes_a_bounded_number_of_queries(
    reader, letter, django_assert_num_queries
) -> None:
    # The user and its permissions (2); the mail, attempts, gates, recipients and attachments.
    # Of the provider's events, too.
    with django_assert_num_queries(9):
        text_of(reader, letter)


def test_the_buttons_are_those_that_fit_the_status(site, smtp, queue_mail, deliver) -> None:
    operator = client_of("view_emaillog", "operate_emaillog")
    mail = queue_mail()
    text = text_of(operator, mail)
    assert 'value="cancel"' in text
    assert 'value="requeue"' not in text
    deliver()
    text = text_of(operator, mail)
    assert 'value="send_again"' in text
    assert 'value="cancel"' not in text


def test_an_operation_asked_for_by_a_mails_page_returns_to_it(site, queue_mail) -> None:
    operator, mail = client_of("view_emaillog", "operate_emaillog"), queue_mail()
    fields = {"action": "cancel", "_selected_action": [str(mail.pk)], "from_detail": "1"}
    asked = operator.post(address("changelist"), fields).content.decode()
    assert 'name="from_detail"' in asked
    done = operator.post(address("changelist"), {**fields, "confirmed": "yes"})
    assert done["Location"] == address("change", mail.pk)


def test_a_mail_that_there_is_not_leads_back(viewer) -> None:
    page = viewer.get(address("change", "00000000-0000-7000-8000-000000000000"))
    assert page.status_code == 302
    assert viewer.get(address("change", "nonsense")).status_code == 302
