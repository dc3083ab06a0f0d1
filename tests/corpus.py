"""Provide every kind of message that a site sends, and the bytes each becomes on the wire.

``CORPUS`` holds a factory per kind, limited to the kinds that the installed Django supports.
``wire`` returns what Django's own SMTP backend would send.
"""

from __future__ import annotations

import email.charset
import email.message
import email.policy
import re
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from email.headerregistry import Address
from email.mime.application import MIMEApplication
from email.mime.image import MIMEImage
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText
from email.utils import parsedate_to_datetime
from typing import Any

import django
from django.core.mail import EmailAlternative, EmailAttachment, EmailMessage, EmailMultiAlternatives
from django.core.mail.backends.smtp import EmailBackend as SMTPBackend
from django.utils.functional import lazystr
from django.utils.translation import gettext_lazy

MODERN = django.VERSION >= (6, 0)

PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010804000000b51c0c02"
    "0000000b4944415478da6364600000000600023081d02f0000000049454e44ae426082"
)
ICS = "BEGIN:VCALENDAR\r\nVERSION:2.0\r\nMETHOD:REQUEST\r\nEND:VCALENDAR\r\n"

Wire = tuple[str, list[str], bytes]
"""Envelope sender, envelope recipients and content, as passed to ``smtplib.SMTP.sendmail``."""


class _Recorder:
    """A replacement for the open ``smtplib.SMTP`` of Django's backend that records the mail."""

    def sendmail(self, sender: str, recipients: list[str], content: bytes) -> None:
        self.wire: Wire = (sender, recipients, content)


def wire(message: EmailMessage) -> Wire:
    """Return what Django's SMTP backend would pass to the server for a message."""
    backend = SMTPBackend.__new__(SMTPBackend)
    recorder = _Recorder()
    vars(backend).update(connection=recorder, fail_silently=False)
    assert backend._send(message) is True
    return recorder.wire


def wire_bytes(message: EmailMessage) -> bytes:
    """Return the content that Django's SMTP backend would send for a message."""
    return wire(message)[2]


def normalise(content: bytes) -> bytes:
    """Replace everything that differs each time Django builds a message.

    These are boundaries, the current Date and the Message-ID from Python's ``make_msgid``. A Date
    or Message-ID set by the message stays.
    """
    for number, boundary in enumerate(re.findall(rb'boundary="(===============\d+==)"', content)):
        content = content.replace(boundary, b"boundary-%d" % number)
    content = re.sub(rb"(?m)^Message-ID:\s+<\d+\.\d+\.\d+@[^>]+>", b"Message-ID: <made>", content)
    return re.sub(rb"(?m)^Date: ([^\r\n]+)", _date_if_not_now, content)


def _date_if_not_now(match: re.Match[bytes]) -> bytes:
    try:
        moment = parsedate_to_datetime(match[1].decode())
    except ValueError:
        return match[0]
    if moment.tzinfo is None:  # written as -0000
        moment = moment.replace(tzinfo=timezone.utc)
    is_now = abs(datetime.now(timezone.utc) - moment) < timedelta(minutes=10)
    return b"Date: now" if is_now else match[0]


class Newsletter(EmailMultiAlternatives):
    """A site's own class, with attributes set on the class."""

    content_subtype = "html"
    encoding = "iso-8859-9"
    tags = ("newsletter",)

    def __init__(self, issue: int, **kwargs: Any) -> None:
        super().__init__(f"Issue {issue}", "<p>Şubat</p>", **kwargs)
        self.issue = issue


class Archived(EmailMessage):
    """A class that sends to one more address than the headers contain."""

    def recipients(self) -> list[str]:
        return [*super().recipients(), "archive@example.com"]


class Signed(EmailMultiAlternatives):
    """A class that changes the MIME message Django built, for every version of Django."""

    def message(self, **kwargs: Any) -> Any:
        mime = super().message(**kwargs)
        mime["X-Signature"] = f"of {len(self.body)} characters"
        return mime


def plain(**kwargs: Any) -> EmailMessage:
    fields: dict[str, Any] = {"to": ["to@example.com"], "from_email": "from@example.com", **kwargs}
    return EmailMessage(fields.pop("subject", "Subject"), fields.pop("body", "Body\n"), **fields)


def html(**kwargs: Any) -> EmailMultiAlternatives:
    fields: dict[str, Any] = {"to": ["to@example.com"], "from_email": "from@example.com", **kwargs}
    message = EmailMultiAlternatives("Subject", fields.pop("body", "Text"), **fields)
    message.attach_alternative("<p>HTML</p>", "text/html")
    return message


def with_attachment(*attachment: Any, **kwargs: Any) -> EmailMessage:
    message = plain(**kwargs)
    message.attach(*attachment)
    return message


def with_part(part: Any) -> EmailMessage:
    message = html()
    message.attachments.append(part)  # attach() warns about MIMEBase on Django 6
    return message


def inline_legacy() -> EmailMessage:
    image = MIMEImage(PNG, "png")
    image.add_header("Content-ID", "<logo@example.com>")
    image.add_header("Content-Disposition", "inline", filename="logo.png")
    return with_part(image)


def inline_modern() -> EmailMessage:
    image = email.message.MIMEPart()
    image.set_content(
        PNG, "image", "png", disposition="inline", cid="<logo@example.com>", filename="ıssız.png"
    )
    return with_part(image)


def nested_parts() -> EmailMessage:
    related = MIMEMultipart("related", boundary="fixed")
    related.preamble = "Before"
    related.attach(MIMEText("<p>ğ</p>", "html", "utf-8"))
    related.attach(MIMEText("plain", "plain", "us-ascii"))
    related.attach(MIMEApplication(b"\0\1\2" * 50, Name="data.bin"))
    return with_part(related)


def attached_django_message() -> EmailMessage:
    inner = html()
    inner.subject = "Inner – içeride"
    inner.attach("inner.bin", b"\x00\xff", "application/octet-stream")
    inner.extra_headers["Date"] = "Mon, 01 Jan 2001 00:00:00 -0000"
    return with_attachment("inner.eml", inner, "message/rfc822")


def attached_python_message() -> EmailMessage:
    inner = email.message.EmailMessage()
    inner["Subject"] = "Inner"
    inner["To"] = Address("Jane", "jane", "example.com")
    inner.set_content("Inner body\n")
    inner.add_attachment(b"\x00\xff" * 40, "application", "pdf", filename="a.pdf")
    inner.set_boundary("fixed")
    return with_attachment("inner.eml", inner, "message/rfc822")


def attached_raw_message() -> EmailMessage:
    raw = b"Subject: Inner\nX-Long: " + b"word " * 30 + b"\n\nInner body\n"
    return with_attachment(None, raw, "message/rfc822")


def anymail_attributes() -> EmailMessage:
    message = html()
    vars(message).update(
        tags=["welcome", "tr"],
        metadata={"order": 7, "paid": True},
        merge_data={"to@example.com": {"name": "Ayşe"}},
        merge_global_data={"site": lazystr("Shop")},
        template_id="tpl-1",
        esp_extra={"o:tracking": False, "nested": {"list": [1, None, 2.5]}},
        envelope_sender="bounce@example.com",
        track_opens=True,
        send_at=datetime(2027, 1, 2, 3, 4, 5, tzinfo=timezone(timedelta(hours=3))),
    )
    return message


def bcc_only() -> EmailMessage:
    return plain(to=[], bcc=["hidden@example.com", "Gizli <two@example.com>"])


def fixed_ids() -> EmailMessage:
    headers = {"message-id": "<order-7@example.com>", "Date": "Mon, 01 Jan 2001 00:00:00 -0000"}
    return plain(headers=headers)


def many_headers() -> EmailMessage:
    headers = {
        "X-Zulu": "1",
        "list-unsubscribe": "<https://example.com/u>, <mailto:u@example.com>",
        "X-Alpha": lazystr("önce"),
        "References": " ".join(f"<{n}.{n}@example.com>" for n in range(20)),
        "Importance": "High",
    }
    return plain(headers=headers)


def same_name_twice() -> EmailMessage:
    message = with_attachment("report.pdf", b"%PDF first", "application/pdf")
    message.attach("report.pdf", b"%PDF second", "application/pdf")
    return message


def tuples() -> EmailMessage:
    message = html(attachments=[("a.txt", "text"), ("b.bin", b"\xff\xfe")])
    message.attachments += [
        ("c.csv", "ş;1\n", "text/csv"),
        EmailAttachment("d.pdf", b"%PDF", "application/pdf"),
    ]
    message.alternatives.append(EmailAlternative(ICS, "text/calendar; method=REQUEST"))
    return message


def several_alternatives() -> EmailMessage:
    message = html()
    message.attach_alternative("<html amp4email></html>", "text/x-amp-html")
    message.attach_alternative(ICS, "text/calendar")
    message.attach_alternative(b"\x00\x01", "application/octet-stream")
    return message


def html_only() -> EmailMessage:
    message = plain(body="<p>ı</p>")
    message.content_subtype = "html"
    return message


def encoded(charset: Any) -> EmailMessage:
    message = html(body="Grüße, 10 £")
    message.subject = "Grüße"
    message.encoding = charset
    message.attach("straße.txt", "Grüße", "text/plain")
    return message


def newsletter() -> EmailMessage:
    message = Newsletter(7, to=["to@example.com"])
    message.attach_alternative("Şubat", "text/plain")
    return message


CORPUS: list[tuple[str, Callable[[], EmailMessage]]] = [
    ("plain", plain),
    ("empty", lambda: plain(subject="", body="")),
    ("non_ascii", lambda: plain(subject="Şifre sıfırlama – 🎉", body="Merhaba dünya 🎉\n")),
    ("long_lines", lambda: plain(body="ğ" * 2000 + "\n.\nFrom here\n", subject="word " * 60)),
    ("cc_bcc_reply_to", lambda: plain(
        cc=["cc@example.com"], bcc=["bcc@example.com"], reply_to=["a@example.com", "b@example.com"]
    )),
    ("bcc_only", bcc_only),
    ("custom_headers", many_headers),
    ("fixed_message_id_and_date", fixed_ids),
    ("from_header_other_than_envelope", lambda: plain(
        headers={"From": "Shop <shop@example.com>", "Sender": "robot@example.com"}
    )),
    ("to_header_other_than_recipients", lambda: plain(
        headers={"To": "list@example.com", "reply-to": "x@y.org"}
    )),
    ("body_with_template_variable", lambda: plain(body="Price: {{ x }}")),
    ("body_with_template_tag", lambda: plain(body="{% now 'Y' %} {% x %}")),
    ("html_alternative", html),
    ("html_amp_calendar_and_binary_alternatives", several_alternatives),
    ("html_only_by_content_subtype", html_only),
    ("html_without_text", lambda: html(body="")),
    ("attachment_with_media_type", lambda: with_attachment("a.dat", b"\0\xff" * 999, "image/x-own")),  # noqa: E501
    ("attachment_without_body", lambda: with_attachment("a.pdf", b"%PDF", None, body="")),
    ("two_attachments_of_the_same_name", same_name_twice),
    ("attachment_without_file_name", lambda: with_attachment(None, b"%PDF", "application/pdf")),
    ("attachment_with_non_ascii_name", lambda: with_attachment("çizelge ğüş.pdf", b"%PDF")),
    ("text_attachment_that_is_base64", lambda: with_attachment("t.txt", "testtest", "text/plain")),
    ("text_attachment_non_ascii", lambda: with_attachment("ğ.txt", "ışık\r\n€\n", "text/plain")),
    ("text_attachment_given_as_bytes", lambda: with_attachment("a.csv", "ğ;1".encode(), "text/csv")),  # noqa: E501
    ("text_attachment_that_is_not_utf8", lambda: with_attachment("a.txt", b"\xff\xfe", "text/plain")),  # noqa: E501
    ("text_as_binary_attachment", lambda: with_attachment("a.json", '{"a": 1}', "application/json")),  # noqa: E501
    ("attachments_and_alternatives_as_tuples", tuples),
    ("inline_image_legacy", inline_legacy),
    ("nested_mime_parts", nested_parts),
    ("attached_django_message", attached_django_message),
    ("attached_python_message", attached_python_message),
    ("attached_message_as_bytes", attached_raw_message),
    ("display_name_with_comma", lambda: plain(
        to=['"Doe, John" <j@example.com>', "Ayşe <a@example.com>"]
    )),
    ("international_domain", lambda: plain(to=["a@bücher.example", "b@example.com"])),
    ("anymail_attributes", anymail_attributes),
    ("encoding_iso_8859_1", lambda: encoded("iso-8859-1")),
    ("lazy_strings", lambda: plain(
        subject=gettext_lazy("Yes"), body=lazystr("lazy body"), to=[lazystr("lazy@example.com")]
    )),
    ("class_with_own_fields", newsletter),
    ("class_with_own_recipients", lambda: Archived("S", "B", to=["to@example.com"])),
    ("class_that_builds_itself", lambda: Signed("S", "Body ğ", to=["to@example.com"])),
]  # fmt: skip

if MODERN:
    CORPUS += [
        ("inline_image_modern", inline_modern),
        ("recipients_as_address_objects", lambda: plain(
            to=[Address("Ayşe Yılmaz", "a", "example.com")]
        )),
    ]  # fmt: skip
else:

    def related() -> EmailMessage:
        message = inline_legacy()
        vars(message).update(mixed_subtype="related", alternative_subtype="mixed")
        return message

    def quoted_printable() -> EmailMessage:
        charset = email.charset.Charset("utf-8")
        charset.body_encoding = email.charset.QP
        return encoded(charset)

    CORPUS += [("multipart_subtypes", related), ("encoding_as_charset_object", quoted_printable)]
