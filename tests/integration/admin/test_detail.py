"""The page of an e-mail: its data for those who may view it, its content for those who may read."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.fernet import Fernet
from django.core.mail import EmailMessage, EmailMultiAlternatives
from django.utils import timezone

import django_epica_mail
from devservers.smtp_faults import refuse
from django_epica_mail import outbox
from django_epica_mail.admin.operations import possible
from django_epica_mail.lifecycle import Status
from django_epica_mail.models import EmailAttachment, EmailLog
from tests.integration.admin.pages import client_of, html_of, url

LATER = timezone.now() + timedelta(days=1)


def test_a_viewer_sees_recipients_and_data_but_no_content(viewer, letter) -> None:
    html = html_of(viewer, "emaillog_change", letter.pk)
    assert "ayse@example.com" in html
    assert "hidden@example.com" in html
    assert letter.message_id.strip("<>") in html
    for secret in ("plain words", "HTML", "X-Order", "Fatura", "/raw/", "iframe"):
        assert secret not in html
    assert "You may not see the content of this e-mail" in html


def test_a_reader_sees_text_headers_and_attachments(reader, letter) -> None:
    html = html_of(reader, "emaillog_change", letter.pk)
    assert "The plain words &amp; &lt;b&gt;no markup&lt;/b&gt;" in html
    assert "Sipariş özeti" in html
    assert '<th scope="row">X-Order</th><td>4711</td>' in html
    assert "Fatura ğ.pdf" in html
    assert "The <b>HTML</b> words" not in html, "it is only in the frame"
    source = url("emaillog_html", letter.pk)
    assert f'sandbox="" referrerpolicy="no-referrer" src="{source}' in html


def test_the_page_shows_subject_recipient_and_reply(superuser, smtp, queue_mail, deliver) -> None:
    smtp.inject(refuse("rcpt", 550, "5.1.1 No such user", times=1))
    mail = queue_mail("refused@example.com", subject="A failed mail")
    deliver()
    html = html_of(superuser, "emaillog_change", mail.pk)
    assert "refused@example.com" in html
    assert "5.1.1 No such user" in html
    assert "A failed mail" in html


def test_many_recipients_are_shown_in_part(viewer, queue_mail) -> None:
    mail = queue_mail(*(f"r{number}@example.com" for number in range(250)))
    html = html_of(viewer, "emaillog_change", mail.pk)
    assert "r199@example.com" in html
    assert "r200@example.com" not in html
    assert "and more" in html


def test_an_attachment_is_downloaded_and_never_opened(reader, letter) -> None:
    pdf, page = letter.attachments.order_by("pk")
    got = reader.get(url("emaillog_attachment", letter.pk, pdf.pk))
    assert b"".join(got.streaming_content) == b"%PDF-1.4\x00"
    assert got["Content-Disposition"].startswith("attachment; filename*=utf-8''Fatura%20%C4%9F.pdf")
    html = reader.get(url("emaillog_attachment", letter.pk, page.pk))
    assert html["Content-Type"] == "application/octet-stream"
    assert html["X-Content-Type-Options"] == "nosniff"
    assert html["Content-Security-Policy"].startswith("sandbox")


def test_the_attachment_of_another_mail_is_not_found(reader, letter, queue_mail) -> None:
    attachment = letter.attachments.first()
    page = url("emaillog_attachment", queue_mail().pk, attachment.pk)
    assert reader.get(page).status_code == 404


def test_deleted_content_is_reported_as_deleted(reader, queue_mail) -> None:
    mail = queue_mail(keep_content="until_sent")
    EmailLog.objects.update(envelope="")
    assert "The content was deleted" in html_of(reader, "emaillog_change", mail.pk)
    for name in ("emaillog_html", "emaillog_raw"):
        assert reader.get(url(name, mail.pk)).status_code == 404


def test_unreadable_content_does_not_break_the_page(reader, queue_mail) -> None:
    mail = queue_mail()
    EmailLog.objects.update(envelope='{"v": 99}')
    assert "stored in version 99" in html_of(reader, "emaillog_change", mail.pk)
    for name in ("emaillog_html", "emaillog_raw"):
        assert reader.get(url(name, mail.pk)).status_code == 404


def test_the_stored_envelope_is_never_shown(superuser, queue_mail) -> None:
    mail = queue_mail()
    EmailLog.objects.update(envelope='{"v": 1, "body": "the secret code is 4711"}')
    assert "4711" not in html_of(superuser, "emaillog_change", mail.pk)


def test_a_mail_without_html_has_no_frame(reader, queue_mail) -> None:
    mail = queue_mail()
    assert "<iframe" not in html_of(reader, "emaillog_change", mail.pk)
    assert reader.get(url("emaillog_html", mail.pk)).status_code == 404


def test_encrypted_content_can_be_read_and_sent_again(reader, epica_mail) -> None:
    epica_mail(ENCRYPTION_KEYS=[Fernet.generate_key().decode()])
    message = EmailMessage("S", "The secret words", None, ["a@example.com"])
    message.attach("a.bin", b"secret bytes", "application/octet-stream")
    mail = outbox.enqueue(message, transport="smtp")
    attachment = url("emaillog_attachment", mail.pk, mail.attachments.get().pk)
    assert "secret" not in mail.envelope
    assert "The secret words" in html_of(reader, "emaillog_change", mail.pk)
    assert b"".join(reader.get(attachment).streaming_content) == b"secret bytes"
    EmailLog.objects.update(status=Status.SENT, pending=None)
    (again,) = outbox.send_again([mail.pk])
    assert "secret" not in again.envelope
    assert again.message().attachments[0].content == b"secret bytes"
    epica_mail(ENCRYPTION_KEYS=[Fernet.generate_key().decode()])
    unreadable = "The content cannot be read: MissingKey"
    assert unreadable in html_of(reader, "emaillog_change", mail.pk)
    assert reader.get(attachment).status_code == 404
    assert reader.get(url("emaillog_raw", mail.pk)).status_code == 404
    assert outbox.send_again([mail.pk]) == []


def test_the_buttons_fit_the_status(site, smtp, queue_mail, deliver) -> None:
    operator = client_of("view_emaillog", "operate_emaillog")
    mail = queue_mail()
    html = html_of(operator, "emaillog_change", mail.pk)
    assert 'value="cancel"' in html
    assert 'value="requeue"' not in html
    deliver()
    html = html_of(operator, "emaillog_change", mail.pk)
    assert 'value="send_again"' in html
    assert 'value="cancel"' not in html


def test_an_operation_started_on_the_page_returns_to_it(site, queue_mail) -> None:
    operator, mail = client_of("view_emaillog", "operate_emaillog"), queue_mail()
    fields = {"action": "cancel", "_selected_action": [str(mail.pk)], "from_detail": "1"}
    asked = operator.post(url("emaillog_changelist"), fields).content.decode()
    assert 'name="from_detail"' in asked
    done = operator.post(url("emaillog_changelist"), {**fields, "confirmed": "yes"})
    assert done["Location"] == url("emaillog_change", mail.pk)


@pytest.mark.parametrize("pk", ["00000000-0000-7000-8000-000000000000", "nonsense"])
def test_an_unknown_id_redirects(viewer, pk) -> None:
    assert viewer.get(url("emaillog_change", pk)).status_code == 302


def test_the_number_of_queries_is_bounded(reader, letter, django_assert_num_queries) -> None:
    # The user and its permissions (2); the mail, attempts, gates, recipients, attachments and
    # provider events, slowed domains, badge, bad news, and the admin's log (2).
    with django_assert_num_queries(14):
        html_of(reader, "emaillog_change", letter.pk)


def test_the_attachments_of_another_mail_are_neither_listed_nor_shown(reader, letter) -> None:
    message = EmailMessage("S", "B", None, ["victim@example.com"])
    message.attach("secret.pdf", b"other", "application/pdf")
    victims = outbox.enqueue(message, transport="smtp")
    letter.attachments.add(*victims.attachments.all())
    assert "secret.pdf" not in html_of(reader, "emaillog_change", letter.pk)
    stolen = victims.attachments.get().pk
    assert reader.get(url("emaillog_attachment", letter.pk, stolen)).status_code == 404
    assert reader.get(url("emaillog_attachment", victims.pk, stolen)).status_code == 200


def test_html_is_shown_without_inline_images_that_somebody_replaced(reader) -> None:
    message = EmailMultiAlternatives("S", "B", None, ["to@example.com"])
    message.attach_alternative('<img src="cid:x">words', "text/html")
    message.attach("a.bin", b"content", "application/octet-stream")
    log = outbox.enqueue(message, transport="smtp")
    EmailAttachment.objects.update(content=b"evil", size=4)
    assert "words" in html_of(reader, "emaillog_html", log.pk)


def test_the_page_renews_itself_until_the_mail_has_ended(viewer, smtp, queue_mail, deliver) -> None:
    mail = queue_mail()
    html = html_of(viewer, "emaillog_change", mail.pk)
    assert 'data-refresh="3"' in html
    assert "epica_mail/live.js" in html
    deliver()
    html = html_of(viewer, "emaillog_change", mail.pk)
    assert "data-refresh" not in html
    assert "live.js" not in html


def test_scripts_stay_small() -> None:
    folder = Path(django_epica_mail.__file__).parent / "static" / "epica_mail"
    assert sum(path.stat().st_size for path in folder.glob("*.js")) < 10_000


@pytest.mark.parametrize(
    ("values", "offered"),
    [
        ({"status": "queued"}, ["export_csv", "cancel"]),
        ({"status": "queued", "due_at": LATER}, ["send_now", "export_csv", "cancel"]),
        ({"status": "failed"}, ["requeue", "send_again", "export_csv"]),
        (
            {"status": "unknown"},
            ["decide_arrived", "decide_resend", "export_csv", "cancel", "decide_write_off"],
        ),
    ],
)
def test_only_what_does_something_is_offered_by_rank(queue_mail, values, offered) -> None:
    mail = queue_mail()
    for name, value in values.items():
        setattr(mail, name, value)
    assert [it.name for it in possible(mail)] == offered
