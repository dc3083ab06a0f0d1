"""Operations on e-mails in the admin: confirmed, permitted, logged, and done by the outbox."""

from __future__ import annotations

import re
from typing import Any

import pytest
from django.core.mail import EmailMessage
from django.test import Client
from django.utils import timezone

from benchmarks.rows import multiply
from devservers.smtp_faults import refuse
from django_epica_mail import lifecycle, outbox
from django_epica_mail.lifecycle import Status
from django_epica_mail.models import EmailLog
from django_epica_mail.retry import Kind
from django_epica_mail.signals import email_moved
from tests.integration.admin.pages import client_of, html_of, url

LIST = "emaillog_changelist"


@pytest.fixture
def operator(site: None) -> Client:
    """Log in a user who may operate the queue, and needs a CSRF token to do so."""
    return client_of("view_emaillog", "operate_emaillog", enforce_csrf_checks=True)


def post(client: Client, fields: dict[str, Any], query: str = "") -> Any:
    """Post fields to the list of e-mails with a CSRF token, and follow the redirect."""
    page = client.get(url(LIST))
    token = client.cookies["csrftoken"].value if page.status_code == 200 else ""
    fields = {**fields, "csrfmiddlewaretoken": token}
    return client.post(f"{url(LIST)}{query}", fields, follow=True)


def operate(client: Client, action: str, *mails: EmailLog, **fields: Any) -> Any:
    """Choose an action, and confirm it with the fields of the confirmation form."""
    chosen = {"action": action, "_selected_action": [mail.pk for mail in mails], **fields}
    asked = post(client, {**chosen, "index": "0"})
    text = asked.content.decode()
    if 'name="confirmed"' not in text:
        return asked
    hidden = re.findall(r'<input type="hidden" name="([^"]+)" value="([^"]*)"', text)
    form: dict[str, list[str]] = {}
    for name, value in hidden:
        form.setdefault(name, []).append(value)
    form.pop("csrfmiddlewaretoken")
    return post(client, form)


def status_of(mail: EmailLog) -> str:
    return EmailLog.objects.get(pk=mail.pk).status


def force(mail: EmailLog, status: Status, **values: Any) -> EmailLog:
    """Set the status of an e-mail and the columns that follow from it."""
    EmailLog.objects.filter(pk=mail.pk).update(
        status=status,
        pending=9 if status in lifecycle.CLAIMABLE else None,
        finished_at=timezone.now() if status in lifecycle.FINAL else None,
        **values,
    )
    mail.refresh_from_db()
    return mail


def logged() -> list[tuple[str, str, str]]:
    """Return the admin's log: ids, names and messages."""
    from django.contrib.admin.models import LogEntry

    entries = LogEntry.objects.order_by("pk")
    return list(entries.values_list("object_id", "object_repr", "change_message"))


def test_nothing_happens_before_confirmation(operator, queue_mail) -> None:
    mail = queue_mail(subject="To be withdrawn")
    chosen = {"action": "cancel", "_selected_action": [mail.pk], "index": "0"}
    text = post(operator, chosen).content.decode()
    assert "“Cancel” for 1 e-mail?" in text
    assert "To be withdrawn" in text
    assert status_of(mail) == "queued"
    assert logged() == []


def test_a_mail_is_cancelled(operator, queue_mail) -> None:
    mail, other = queue_mail(), queue_mail()
    page = operate(operator, "cancel", mail)
    assert "Cancel: 1 e-mail." in page.content.decode()
    assert (status_of(mail), status_of(other)) == ("cancelled", "queued")
    assert logged() == [(str(mail.pk), str(mail.pk), "Operation: cancel")]


def test_failed_mail_queued_again_is_sent(operator, smtp, queue_mail, deliver) -> None:
    smtp.inject(refuse("rcpt", 550, "5.1.1 No such user", times=1))
    mail = queue_mail()
    deliver()
    assert status_of(mail) == "failed"
    operate(operator, "requeue", mail)
    assert (status_of(mail), deliver(), status_of(mail)) == ("queued", 1, "sent")


def test_scheduled_mail_is_sent_now(operator, smtp, queue_mail, deliver) -> None:
    later = timezone.now() + timezone.timedelta(hours=2)
    mail = queue_mail(send_at=later)
    assert deliver() == 0
    operate(operator, "send_now", mail)
    assert deliver() == 1
    assert status_of(mail) == "sent"


def test_sending_again_creates_a_new_mail(operator, smtp, queue_mail, deliver) -> None:
    mail = queue_mail("again@example.com", subject="Twice", priority=3, category="order")
    deliver()
    operate(operator, "send_again", mail)
    new = EmailLog.objects.exclude(pk=mail.pk).get()
    assert (new.priority, new.category, new.queue) == (3, "order", mail.queue)
    assert new.message_id != mail.message_id
    deliver()
    assert (status_of(mail), status_of(new)) == ("sent", "sent")
    first, second = smtp.accepted
    assert first.recipients == second.recipients == ("again@example.com",)


@pytest.mark.parametrize(
    ("action", "status"),
    [("decide_arrived", "sent"), ("decide_resend", "retrying"), ("decide_write_off", "failed")],
)
def test_an_unknown_outcome_is_decided(operator, queue_mail, action, status) -> None:
    mail = force(queue_mail(), Status.UNKNOWN, failure_kind=Kind.WORKER_LOST)
    settled = force(queue_mail(), Status.SENT)
    page = operate(operator, action, mail, settled)
    assert "1 e-mail." in page.content.decode()
    assert (status_of(mail), status_of(settled)) == (status, "sent")
    assert logged() == [(str(mail.pk), str(mail.pk), f"Operation: {action}")]


def test_mail_with_another_status_is_skipped_and_reported(operator, queue_mail) -> None:
    waiting, sent = queue_mail(), force(queue_mail(), Status.SENT)
    chosen = {"action": "cancel", "_selected_action": [waiting.pk, sent.pk], "index": "0"}
    assert "1 of the chosen e-mails is skipped" in post(operator, chosen).content.decode()
    page = operate(operator, "requeue", waiting, sent)
    assert "applies to none of the chosen" in page.content.decode()


def test_mail_without_content_is_neither_queued_nor_sent_again(operator, queue_mail) -> None:
    mail = force(queue_mail(), Status.FAILED, envelope="")
    for action in ("requeue", "send_again"):
        page = operate(operator, action, mail)
        assert "applies to none of the chosen" in page.content.decode()
    assert EmailLog.objects.count() == 1
    assert status_of(mail) == "failed"


def test_all_mail_of_a_filter_can_be_chosen_at_once(operator, queue_mail) -> None:
    multiply(queue_mail(queue="wanted"), 60)
    other = queue_mail()
    first = EmailLog.objects.filter(queue="wanted").last()
    chosen = {"action": "cancel", "_selected_action": [first.pk], "select_across": "1"}
    asked = post(operator, {**chosen, "index": "0"}, "?queue=wanted")
    assert "for 61 e-mails?" in asked.content.decode()
    post(operator, {**chosen, "confirmed": "yes"}, "?queue=wanted")
    assert EmailLog.objects.filter(status="cancelled").count() == 61
    assert status_of(other) == "queued"


def test_too_much_mail_at_once_is_refused(operator, queue_mail, monkeypatch) -> None:
    monkeypatch.setattr("django_epica_mail.admin.operations.MOST", 5)
    mail = queue_mail()
    multiply(mail, 6)
    chosen = {"action": "cancel", "_selected_action": [mail.pk], "select_across": "1"}
    page = post(operator, {**chosen, "confirmed": "yes"})
    assert "At most 5 e-mails can be chosen at once." in page.content.decode()
    assert EmailLog.objects.filter(status="queued").count() == 7


def test_a_viewer_is_offered_no_operation_and_can_run_none(site, queue_mail) -> None:
    viewer = client_of("view_emaillog", enforce_csrf_checks=True)
    mail = queue_mail()
    assert 'name="action"' not in html_of(viewer, LIST)
    operate(viewer, "cancel", mail)
    post(viewer, {"action": "cancel", "_selected_action": [mail.pk], "confirmed": "yes"})
    assert status_of(mail) == "queued"
    assert logged() == []


def test_an_operation_requires_a_csrf_token(operator, queue_mail) -> None:
    mail = queue_mail()
    chosen = {"action": "cancel", "_selected_action": [mail.pk], "confirmed": "yes"}
    assert operator.post(url(LIST), chosen).status_code == 403
    assert operator.get(url(LIST), chosen).status_code in (302, 400)
    assert status_of(mail) == "queued"


def test_an_export_is_confirmed_logged_and_downloaded(operator, queue_mail) -> None:
    mails = [queue_mail(), queue_mail()]
    page = operate(operator, "export_csv", *mails)
    assert page["Content-Disposition"] == 'attachment; filename="e-mails.csv"'
    assert page["X-Content-Type-Options"] == "nosniff"
    text = b"".join(page.streaming_content).decode("utf-8-sig")
    assert all(str(mail.pk) in text for mail in mails)
    assert len(logged()) == 2


def test_sending_again_keeps_attachments_but_not_the_message_id(db) -> None:
    message = EmailMessage("S", "B", None, ["a@example.com"], headers={"Message-ID": "<x@y.z>"})
    message.attach("data.bin", b"\x00\x01", "application/octet-stream")
    old = force(outbox.enqueue(message, transport="smtp"), Status.SENT)
    (new,) = outbox.send_again([old.pk])
    assert new.message_id not in ("<x@y.z>", "")
    assert bytes(new.attachments.get().content) == bytes(old.attachments.get().content)
    assert new.attachments.get().pk != old.attachments.get().pk


def test_an_unreadable_mail_does_not_stop_others_being_sent_again(db, queue_mail) -> None:
    bad, good = (force(queue_mail(), Status.SENT) for _ in range(2))
    EmailLog.objects.filter(pk=bad.pk).update(envelope='{"v": 99}')
    assert len(outbox.send_again([bad.pk, good.pk])) == 1


def test_an_unknown_verdict_is_refused(db, queue_mail) -> None:
    with pytest.raises(ValueError, match="'maybe'"):
        outbox.decide([queue_mail().pk], "maybe")


def test_a_decision_is_announced_after_commit(
    db, queue_mail, django_capture_on_commit_callbacks
) -> None:
    heard: list[Any] = []

    def hear(email_id: Any, move: Any, **_: Any) -> None:
        heard.append((email_id, move.name))

    email_moved.connect(hear)
    try:
        mail = force(queue_mail(), Status.UNKNOWN)
        with django_capture_on_commit_callbacks(execute=True):
            outbox.decide([mail.pk], "arrived")
            assert heard == []
    finally:
        email_moved.disconnect(hear)
    assert heard == [(mail.pk, "succeed")]


def test_content_is_deleted_when_a_decision_ends_the_mail(db, queue_mail) -> None:
    mail = force(queue_mail(keep_content="until_sent"), Status.UNKNOWN)
    outbox.decide([mail.pk], "arrived")
    assert EmailLog.objects.get(pk=mail.pk).envelope == ""
