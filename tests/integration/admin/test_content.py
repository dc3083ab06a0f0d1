"""The content of an e-mail in the admin: what is read, the raw message, and the sandboxed frame."""

from __future__ import annotations

import email
import email.policy
from email.utils import mktime_tz, parsedate_tz
from typing import Any

import pytest
from django.core.mail import EmailMessage, EmailMultiAlternatives
from django.test import RequestFactory

from django_epica_mail import messages, outbox
from django_epica_mail.admin.content import as_sent, frame, read_content, sandboxed
from django_epica_mail.messages import bounds, encryption
from django_epica_mail.models import EmailLog
from tests.integration.admin.pages import html_of, url


class SignedMessage(EmailMultiAlternatives):
    """A message that builds its own MIME, and is therefore stored as bytes."""

    def message(self, **arguments: Any) -> Any:
        mime = super().message(**arguments)
        mime["X-Signature"] = "signed"
        return mime


def test_text_html_and_headers_are_read(letter) -> None:
    content = read_content(letter)
    assert content.text == "The plain words & <b>no markup</b>"
    assert content.html == "<p>The <b>HTML</b> words</p>"
    headers = dict(content.headers)
    assert headers["Subject"] == "Sipariş özeti"
    assert headers["To"] == "Ayşe <ayse@example.com>"
    assert headers["X-Order"] == "4711"
    assert headers["Message-ID"] == letter.message_id
    assert "Bcc" not in headers


def test_reading_does_not_load_attachments(letter, django_assert_num_queries) -> None:
    mail = EmailLog.objects.get(pk=letter.pk)
    with django_assert_num_queries(0):
        read_content(mail)


def test_an_html_body_is_read_as_html(db) -> None:
    message = EmailMessage("S", "<p>body</p>", None, ["a@example.com"])
    message.content_subtype = "html"
    content = read_content(outbox.enqueue(message, transport="smtp"))
    assert (content.text, content.html) == ("", "<p>body</p>")


def test_a_mail_stored_as_bytes_can_be_read(reader) -> None:
    message = SignedMessage("Signed", "plain ğ", None, ["a@example.com"])
    message.attach_alternative("<p>rich ğ</p>", "text/html")
    mail = outbox.enqueue(message, transport="smtp")
    content = read_content(mail)
    assert (content.text.strip(), content.html.strip()) == ("plain ğ", "<p>rich ğ</p>")
    assert ("X-Signature", "signed") in content.headers
    assert "plain ğ" in html_of(reader, "emaillog_change", mail.pk)
    assert b"X-Signature: signed" in as_sent(mail)


def test_a_mail_stored_as_bytes_that_is_read_slowly_is_neither_shown_nor_sent(
    reader, smtp, deliver, monkeypatch
) -> None:
    mail = outbox.enqueue(SignedMessage("S", "B", None, ["a@example.com"]), transport="smtp")
    monkeypatch.setattr(bounds, "_MOST_READ", 1000)  # as if the row had been written by others
    assert "InvalidMessage" in html_of(reader, "emaillog_change", mail.pk)
    assert reader.get(url("emaillog_html", mail.pk)).status_code == 404
    assert reader.get(url("emaillog_raw", mail.pk)).status_code == 404
    deliver()
    mail.refresh_from_db()
    assert (mail.status, mail.failure_kind) == ("failed", "message")


@pytest.mark.parametrize("value", ["=?nonsense?q?x?=", "=?utf-8?q?=FF?="])
def test_an_undecodable_header_does_not_break_the_page(reader, value) -> None:
    message = EmailMessage("S", "B", None, ["a@example.com"], headers={"X-Odd": value})
    mail = outbox.enqueue(message, transport="smtp")
    assert dict(read_content(mail).headers)["X-Odd"]
    assert '<th scope="row">X-Odd</th>' in html_of(reader, "emaillog_change", mail.pk)


def test_the_raw_message_is_the_one_that_was_sent(reader, smtp, letter, deliver) -> None:
    deliver()
    got = reader.get(url("emaillog_raw", letter.pk))
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


def test_the_source_is_shown_as_plain_text_in_a_sandbox(reader, letter) -> None:
    link = url("emaillog_raw", letter.pk) + "?show"
    assert link in html_of(reader, "emaillog_change", letter.pk)
    got = reader.get(link)
    assert got["Content-Type"] == "text/plain; charset=utf-8"
    assert got["Content-Security-Policy"] == "sandbox; default-src 'none'"
    assert got["X-Content-Type-Options"] == "nosniff"
    assert b"X-Order: 4711" in got.content


@pytest.mark.parametrize(("size", "is_clipped"), [(102 * 1024, False), (102 * 1024 + 1, True)])
def test_the_size_of_the_html_is_compared_with_what_gmail_shows(reader, size, is_clipped) -> None:
    message = EmailMultiAlternatives("S", "plain", None, ["a@example.com"])
    message.attach_alternative("x" * size, "text/html")
    mail = outbox.enqueue(message, transport="smtp")
    page = html_of(reader, "emaillog_change", mail.pk)
    assert "Size of the HTML: 102.0\xa0KB" in page
    assert ("Gmail hides" in page) is is_clipped


@pytest.mark.parametrize(
    "given",
    [
        {"body": None, "subject": None, "from_email": None, "template_id": "welcome"},
        {"extra_headers": {"X-Priority": 1}},
        {"from_email": "a@example.com, b@example.com", "to": ["jörg@example.com"]},
    ],
    ids=str,
)
def test_a_mail_that_only_a_provider_takes_can_be_read(letter, given) -> None:
    message = EmailMessage("S", "B", "shop@example.com", ["to@example.com"])
    vars(message).update(given)
    stored = messages.dump(message, messages.Rules.FIELDS).envelope
    letter.envelope = encryption.seal(stored, encryption.envelope_of(letter.pk))
    headers = dict(read_content(letter).headers)
    assert "None" not in headers.values()
    assert headers["X-Priority"] == "1" if "extra_headers" in given else headers["To"]
    assert b"None" not in as_sent(letter)


def test_headers_set_by_the_caller_are_kept(db) -> None:
    headers = {"Message-ID": "<mine@example.com>", "date": "Thu, 01 Jan 2026 00:00:00 -0000"}
    message = EmailMessage("S", "B", None, ["a@example.com"], headers=headers)
    raw = email.message_from_bytes(as_sent(outbox.enqueue(message, transport="smtp")))
    assert raw.get_all("Message-ID") == ["<mine@example.com>"]
    assert raw.get_all("Date") == ["Thu, 01 Jan 2026 00:00:00 -0000"]


def test_html_is_served_with_a_policy_that_disables_it(reader, letter) -> None:
    page = reader.get(url("emaillog_html", letter.pk))
    assert page.content == b"<!doctype html>\n<p>The <b>HTML</b> words</p>"
    policy = page["Content-Security-Policy"].split("; ")
    assert policy[:2] == ["sandbox", "default-src 'none'"]
    assert "img-src data:" in policy
    assert {"base-uri 'none'", "form-action 'none'", "frame-ancestors 'self'"} <= set(policy)
    assert page["X-Frame-Options"] == "SAMEORIGIN"
    assert page["Referrer-Policy"] == "no-referrer"
    assert page["X-DNS-Prefetch-Control"] == "off"
    assert page["X-Content-Type-Options"] == "nosniff"
    assert "no-store" in page["Cache-Control"]


def test_remote_images_load_only_on_request(reader, letter) -> None:
    page = reader.get(url("emaillog_html", letter.pk), {"images": "1"})
    policy = page["Content-Security-Policy"].split("; ")
    assert "img-src data: https: http:" in policy
    assert policy[:2] == ["sandbox", "default-src 'none'"]


def test_only_the_images_differ_between_the_policies() -> None:
    without, with_images = (
        set(sandboxed("<p>", images=images)["Content-Security-Policy"].split("; "))
        for images in (False, True)
    )
    assert without ^ with_images == {"img-src data:", "img-src data: https: http:"}


def test_the_frame_follows_the_query_string(reader, letter) -> None:
    plain = html_of(reader, "emaillog_change", letter.pk)
    assert "epica-frame-desktop epica-frame-light" in plain
    assert "images=0" in plain
    assert 'href="?width=phone#epica-preview"' in plain
    query = {"width": "phone", "theme": "dark", "images": "1"}
    changed = html_of(reader, "emaillog_change", letter.pk, **query)
    assert "epica-frame-phone epica-frame-dark" in changed
    assert f"{url('emaillog_html', letter.pk)}?images=1" in changed
    query = {"width": '"><script>', "theme": "x", "images": "yes"}
    odd = html_of(reader, "emaillog_change", letter.pk, **query)
    assert "epica-frame-desktop epica-frame-light" in odd
    assert '<script>"' not in odd


def test_a_link_of_the_frame_changes_one_option_only() -> None:
    request = RequestFactory().get("/", {"template": "emails/welcome", "theme": "dark"})
    context = frame(request, "/html/?language=tr")
    assert context["source"] == "/html/?language=tr&images=0"
    wanted = "?template=emails%2Fwelcome&theme=dark&width=phone#epica-preview"
    assert context["links"]["width_phone"] == wanted
    wanted = "?template=emails%2Fwelcome&theme=light#epica-preview"
    assert context["links"]["theme_light"] == wanted
