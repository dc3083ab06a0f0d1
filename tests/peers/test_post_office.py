"""Test importing from django-post_office."""

from __future__ import annotations

import sys
from datetime import timedelta
from email.mime.image import MIMEImage

import pytest
from django.core import mail
from django.core.management import CommandError, call_command
from django.utils import timezone
from post_office import lockfile
from post_office import mail as post_office
from post_office.backends import EmailBackend
from post_office.mail import get_queued
from post_office.models import STATUS, Email, EmailTemplate

from django_epica_mail.management import importers
from django_epica_mail.models import EmailLog
from django_epica_mail.testing import assert_email_queued, drain_email_queue, travel_to


def test_waiting_mail_is_moved_completely_and_sent_once(import_from, full_message) -> None:
    EmailBackend().send_messages([full_message])
    assert get_queued().count() == 1
    assert import_from("post_office", "--yes")["queued"] == 1
    assert get_queued().count() == 0
    (message,) = drain_email_queue()
    assert message.recipients() == ["Ayşe <ayse@example.com>", "cc@example.com", "bcc@example.com"]
    assert (message.subject, message.body) == (full_message.subject, full_message.body)
    assert message.alternatives == full_message.alternatives
    assert message.extra_headers["Reply-To"] == "help@example.com"
    assert message.extra_headers["X-Order"] == "7"
    names = {attachment.filename for attachment in message.attachments}
    assert names == {"fatura.txt", "logo.png"}
    contents = {attachment.filename: attachment.content for attachment in message.attachments}
    assert contents["logo.png"] == b"\x89PNG\r\n\x1a\n\0\xff"


def test_an_inline_image_stays_inline(import_from) -> None:
    image = MIMEImage(b"\x89PNG\r\n\x1a\n\0\xff", "png")
    image.add_header("Content-ID", "<logo>")
    image.add_header("Content-Disposition", "inline", filename="logo.png")
    message = mail.EmailMessage("Logo", "See.", "shop@example.com", ["a@example.com"])
    message.attach(image)
    EmailBackend().send_messages([message])
    import_from("post_office", "--yes")
    (message,) = drain_email_queue()
    part = message.message().get_payload()[1]
    assert part["Content-ID"] == "<logo>"
    assert part.get_payload(decode=True) == b"\x89PNG\r\n\x1a\n\0\xff"


def test_the_source_row_names_the_new_id(import_from, send) -> None:
    send(EmailBackend)
    import_from("post_office", "--yes")
    email = Email.objects.get()
    assert email.status == STATUS.sent
    assert email.logs.get().message == f"Moved to django-epica-mail: {EmailLog.objects.get().pk}"


def test_priority_times_and_transport_are_kept(import_from) -> None:
    at = timezone.now() + timedelta(hours=2)
    post_office.send(
        "a@example.com",
        "shop@example.com",
        subject="Later",
        message="Text",
        priority="high",
        scheduled_time=at,
        expires_at=at + timedelta(hours=1),
        backend="ses",
    )
    post_office.send("b@example.com", "shop@example.com", subject="Low", priority="low")
    post_office.send("c@example.com", "shop@example.com", subject="Other", backend="other")
    import_from("post_office", "--yes", "--transport", "ses")
    assert_email_queued(1, subject="Later", priority="high", transport="ses", send_at=at)
    assert_email_queued(1, subject="Low", priority="low", transport="ses")
    assert_email_queued(1, subject="Other", priority="normal", transport="ses")
    with travel_to(at + timedelta(minutes=1)):
        drain_email_queue()
    assert_email_queued(1, subject="Later", status="sent")


def test_mail_rendered_on_delivery_is_rendered(import_from) -> None:
    template = EmailTemplate.objects.create(
        name="hello", subject="Hello {{ name }}", content="Dear {{ name }}", html_content=""
    )
    post_office.send(
        "a@example.com",
        "shop@example.com",
        template=template,
        context={"name": "Ayşe"},
        render_on_delivery=True,
    )
    import_from("post_office", "--yes")
    assert_email_queued(1, subject="Hello Ayşe", body="Dear Ayşe")


def test_finished_mail_becomes_a_record_and_is_never_sent(import_from, send) -> None:
    for subject in ("Sent", "Failed", "Old"):
        send(EmailBackend, subject)
    Email.objects.filter(subject="Sent").update(status=STATUS.sent)
    Email.objects.filter(subject="Failed").update(status=STATUS.failed)
    Email.objects.get(subject="Failed").logs.create(status=STATUS.failed, message="550 No")
    long_ago = timezone.now() - timedelta(days=31)
    Email.objects.filter(subject="Old").update(status=STATUS.sent, last_updated=long_ago)
    assert import_from("post_office", "--yes")["finished"] == 2
    (sent,) = assert_email_queued(1, status="sent", subject="Sent")
    (failed,) = assert_email_queued(1, status="failed", subject="Failed")
    assert sent.created_at == Email.objects.get(subject="Sent").created
    assert sent.finished_at == Email.objects.get(subject="Sent").last_updated
    assert (failed.reply, failed.failure_kind) == ("550 No", "permanent")
    assert drain_email_queue() == []
    assert import_from("post_office", "--yes", "--days", "40")["finished"] == 1


def test_the_default_is_a_dry_run_that_changes_nothing(import_from, send) -> None:
    send(EmailBackend)
    report = import_from("post_office")
    counts = {"queued": 1, "finished": 0, "listed": 0, "already": 0}
    assert report == {**counts, "refused": [], "dry_run": True}
    assert EmailLog.objects.count() == 0
    assert get_queued().count() == 1


def test_a_second_run_moves_only_new_mail(import_from, send) -> None:
    send(EmailBackend, "One")
    first = import_from("post_office", "--yes")
    assert (first["queued"], first["finished"], first["already"]) == (1, 0, 0)
    send(EmailBackend, "Two")
    second = import_from("post_office", "--yes")
    assert (second["queued"], second["finished"], second["already"]) == (1, 0, 1)
    assert sorted(message.subject for message in drain_email_queue()) == ["One", "Two"]


def test_an_invalid_row_is_left_and_reported(import_from, send) -> None:
    send(EmailBackend, "Bad")
    send(EmailBackend, "Good")
    bad = Email.objects.get(subject="Bad")
    Email.objects.filter(pk=bad.pk).update(to="", subject="Bad")
    report = import_from("post_office", "--yes")
    (refused,) = report["refused"]
    assert refused["row"] == bad.pk
    assert "no recipient" in refused["reason"]
    assert report["queued"] == 1
    assert get_queued().get() == bad


def test_after_an_interruption_each_mail_is_in_one_place(import_from, send, monkeypatch) -> None:
    monkeypatch.setattr(sys.modules[importers.move.__module__], "CHUNK", 2)
    for number in range(5):
        send(EmailBackend, f"Mail {number}")
    done: list[int] = []

    def stop(done_rows: int, total: int) -> None:
        done.append(done_rows)
        if len(done) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        importers.move(importers.find("post_office"), dry_run=False, days=30, advance=stop)
    assert (EmailLog.objects.count(), get_queued().count()) == (4, 1)
    assert import_from("post_office", "--yes")["queued"] == 1
    assert (EmailLog.objects.count(), get_queued().count()) == (5, 0)


def test_a_failure_while_marking_moves_nothing(send, monkeypatch) -> None:
    send(EmailBackend)
    source = importers.find("post_office")

    def fail(moved: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(source, "mark", fail)
    with pytest.raises(RuntimeError):
        importers.move(source, dry_run=False, days=30)
    assert (EmailLog.objects.count(), get_queued().count()) == (0, 1)


# post_office opens the lock file and never closes it.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_running_sender_on_this_host_stops_the_import(send) -> None:
    with (
        lockfile.FileLock(lockfile.default_lockfile),
        pytest.raises(CommandError, match="sending on this machine"),
    ):
        call_command("epica_mail", "import", "--from", "post_office")


def test_a_terminal_shows_counts_and_a_progress_bar(send, capsys, monkeypatch) -> None:
    send(EmailBackend)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    call_command("epica_mail", "import", "--from", "post_office", no_color=True)
    output = capsys.readouterr()
    assert "This was a dry run: nothing has changed. Add --yes to move the mail." in output.out
    assert ["queued", "1"] in [line.split() for line in output.out.splitlines()]
    assert f"moving [{'#' * 30}] 100 % of 1" in output.err
