"""Snapshots of mail: what the file holds, and what is said when a mail differs."""

from __future__ import annotations

import time
from email.mime.text import MIMEText
from pathlib import Path

import pytest
from django.contrib.auth.models import User
from django.contrib.auth.tokens import default_token_generator
from django.core import signing
from django.core.mail import EmailMultiAlternatives
from hypothesis import given
from hypothesis import strategies as st

from django_epica_mail.clock import uuid7
from django_epica_mail.testing import assert_mail_snapshot, drain_email_queue
from django_epica_mail.testing.snapshots import _masked

UPDATE = "EPICA_MAIL_UPDATE_SNAPSHOTS"


def mail(text: str = "Hi\r\nthere  \n") -> EmailMultiAlternatives:
    message = EmailMultiAlternatives(
        "Order ş",
        text,
        "Shop <shop@python.org>",
        ["a@python.org", "b@python.org"],
        reply_to=["help@python.org"],
        headers={
            "X-Shop": "1",
            "Message-ID": f"<{uuid7()}@python.org>",
            "Date": str(time.time()),
        },
    )
    message.attach_alternative("<p>Hi</p>", "text/html")
    message.attach("bill.pdf", b"%PDF", "application/pdf")
    message.attachments.append(MIMEText("note"))
    return message


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write the snapshot of a mail, and return its file."""
    path = tmp_path / "deep" / "order.en.txt"
    monkeypatch.setenv(UPDATE, "1")
    assert_mail_snapshot(mail(), path)
    monkeypatch.delenv(UPDATE)
    return path


def test_the_file_holds_what_a_reader_sees_and_nothing_that_differs_each_time(file: Path) -> None:
    assert file.read_bytes().decode() == (
        "Subject: Order ş\nFrom: Shop <shop@python.org>\nTo: a@python.org, b@python.org\n"
        "Reply-To: help@python.org\nX-Shop: 1\nAttachment: bill.pdf (application/pdf)\n"
        "Attachment: None (text/plain)\n\n--- text/plain\nHi\nthere\n\n--- text/html\n<p>Hi</p>\n"
    )
    assert_mail_snapshot(mail(), str(file))


def test_a_mail_that_differs_is_shown_as_a_difference(file: Path) -> None:
    known = file.read_bytes()
    with pytest.raises(AssertionError) as caught:
        assert_mail_snapshot(mail("Hi\nyou"), file)
    lines = str(caught.value).splitlines()
    assert "--epica-mail-update-snapshots" in lines[0]
    assert lines[1:3] == [f"--- {file}", "+++ the mail now"]
    assert {"-there", "+you", " Hi"} <= set(lines)
    assert file.read_bytes() == known


def test_a_long_difference_is_cut(file: Path) -> None:
    with pytest.raises(AssertionError) as caught:
        assert_mail_snapshot(mail("x\n" * 10_000), file)
    assert len(str(caught.value).splitlines()) == 102


def test_a_missing_file_fails_and_is_not_written(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv(UPDATE, "0")
    with pytest.raises(AssertionError, match=r"There is no snapshot .*To write it"):
        assert_mail_snapshot(mail(), tmp_path / "new.txt")
    assert list(tmp_path.iterdir()) == []


def test_ids_and_tokens_are_masked(tmp_path: Path, file: Path, monkeypatch) -> None:
    def secrets(number: int) -> str:
        user = User(pk=number, password=f"x{number}")
        parts = (
            uuid7(),
            default_token_generator.make_token(user),
            signing.dumps([number]),
            signing.TimestampSigner().sign("a"),
        )
        return "".join(f"https://www.python.org/{part}/ \n" for part in parts) + f"Order {number}"

    path = tmp_path / "order.txt"
    mask = {r"Order \d+": "Order <number>"}
    monkeypatch.setenv(UPDATE, "1")
    assert_mail_snapshot(mail(secrets(1)), path, mask=mask)
    monkeypatch.delenv(UPDATE)
    assert_mail_snapshot(mail(secrets(2)), path, mask=mask)
    for name in ("<uuid>", "<token>", "<signed>", "Order <number>"):
        assert name in path.read_text()


def test_links_of_the_queue_are_masked(
    epica_outbox, public_pages, epica_mail, tmp_path: Path, monkeypatch
) -> None:
    from django_epica_mail.outbox import enqueue

    epica_mail(BASE_URL="https://www.python.org")
    for update in ("1", "0"):
        message = EmailMultiAlternatives("News", "Hi", "shop@python.org", ["a@python.org"])
        enqueue(message, unsubscribe=True, track_opens=True)
        (delivered,) = drain_email_queue()
        monkeypatch.setenv(UPDATE, update)
        assert_mail_snapshot(delivered, tmp_path / "news.txt")
    text = (tmp_path / "news.txt").read_text()
    assert "List-Unsubscribe: <https://www.python.org/mail/unsubscribe/<signed>/>" in text


@given(st.text(alphabet="aZ0-_=:./ \n", max_size=300))
def test_masks_change_nothing_in_ordinary_text(text: str) -> None:
    assert _masked(text[:40], {}) == text[:40]


def test_masking_takes_time_that_grows_with_the_length_only() -> None:
    began = time.process_time()
    _masked("a" * 1_000_000 + ("ab-" * 300_000) + "a:" * 300_000, {})
    assert time.process_time() - began < 10
