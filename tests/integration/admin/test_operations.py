"""What people do to mails from the admin: asked back, permitted, logged, and done by the outbox."""

from __future__ import annotations

import csv
import io
import re
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.core.mail import EmailMessage
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from benchmarks.rows import multiply
from devservers.smtp_faults import refuse
from django_epica_mail import lifecycle, outbox
from django_epica_mail.lifecycle import Status
from django_epica_mail.models import EmailLog
from django_epica_mail.retry import Kind
from django_epica_mail.signals import email_moved


def log_in(*permissions: str) -> Client:
    user = User.objects.create_user("".join(permissions) or "plain", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    client = Client(enforce_csrf_checks=True)
    client.force_login(user)
    return client


@pytest.fixture
def browser(site: None, settings: Any) -> Client:
    """Return the browser of an operator, whose POSTs need Django's token."""
    return log_in("view_emaillog", "operate_emaillog")


LIST = "admin:epica_mail_emaillog_changelist"


def post(browser: Client, fields: dict[str, Any], query: str = "") -> Any:
    address = reverse(LIST)
    page = browser.get(address)
    token = browser.cookies["csrftoken"].value if page.status_code == 200 else ""
    return browser.post(f"{address}{query}", {**fields, "csrfmiddlewaretoken": token}, follow=True)


def operate(browser: Client, action: str, *mails: EmailLog, **fields: Any) -> Any:
    """Choose an action, and confirm what is asked back with the fields of its own form."""
    chosen = {"action": action, "_selected_action": [mail.pk for mail in mails], **fields}
    asked = post(browser, {**chosen, "index": "0"})
    text = asked.content.decode()
    if 'name="confirmed"' not in text:
        return asked
    hidden = re.findall(r'<input type="hidden" name="([^"]+)" value="([^"]*)"', text)
    form: dict[str, list[str]] = {}
    for name, value in hidden:
        form.setdefault(name, []).append(value)
    form.pop("csrfmiddlewaretoken")
    return post(browser, form)


def status_of(mail: EmailLog) -> str:
    return EmailLog.objects.get(pk=mail.pk).status


def force(mail: EmailLog, status: Status, **values: Any) -> EmailLog:
    EmailLog.objects.filter(pk=mail.pk).update(
        status=status,
        pending=9 if status in lifecycle.CLAIMABLE else None,
        finished_at=timezone.now() if status in lifecycle.FINAL else None,
        **values,
    )
    mail.refresh_from_db()
    return mail


def logged() -> list[tuple[str, str, str]]:
    from django.contrib.admin.models import LogEntry

    entries = LogEntry.objects.order_by("pk")
    return list(entries.values_list("object_id", "object_repr", "change_message"))


def test_nothing_is_done_before_it_is_confirmed(browser, queue_mail) -> None:
    mail = queue_mail(subject="To be called back")
    chosen = {"action": "cancel", "_selected_action": [mail.pk], "index": "0"}
    text = post(browser, chosen).content.decode()
    assert "“Cancel” for 1 e-mail?" in text
    assert "To be called back" in text
    assert status_of(mail) == "queued"
    assert logged() == []


def test_cancelling(browser, queue_mail) -> None:
    mail, other = queue_mail(), queue_mail()
    page = operate(browser, "cancel", mail)
    assert "Cancel: 1 e-mail." in page.content.decode()
    assert (status_of(mail), status_of(other)) == ("cancelled", "queued")
    assert logged() == [(str(mail.pk), str(mail.pk), "Operation: cancel")]


def test_queueing_failed_mail_again_sends_it(browser, smtp, queue_mail, deliver) -> None:
    smtp.inject(refuse("rcpt", 550, "5.1.1 No such user", times=1))
    mail = queue_mail()
    deliver()
    assert status_of(mail) == "failed"
    operate(browser, "requeue", mail)
    assert (status_of(mail), deliver(), status_of(mail)) == ("queued", 1, "sent")


def test_sending_now_what_waits_for_its_time(browser, smtp, queue_mail, deliver) -> None:
    later = timezone.now() + timezone.timedelta(hours=2)
    mail = queue_mail(send_at=later)
    assert deliver() == 0
    operate(browser, "send_now", mail)
    assert deliver() == 1
    assert status_of(mail) == "sent"


def test_sending_again_makes_a_new_mail_that_arrives(browser, smtp, queue_mail, deliver) -> None:
    mail = queue_mail("again@example.com", subject="Twice", priority=3, category="order")
    deliver()
    operate(browser, "send_again", mail)
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
def test_deciding_about_unknown_mail(browser, queue_mail, action, status) -> None:
    mail = force(queue_mail(), Status.UNKNOWN, failure_kind=Kind.WORKER_LOST)
    settled = force(queue_mail(), Status.SENT)
    page = operate(browser, action, mail, settled)
    assert "1 e-mail." in page.content.decode()
    assert (status_of(mail), status_of(settled)) == (status, "sent")
    assert logged() == [(str(mail.pk), str(mail.pk), f"Operation: {action}")]


def test_what_an_operation_is_not_for_is_passed_over_and_said(browser, queue_mail) -> None:
    waiting, sent = queue_mail(), force(queue_mail(), Status.SENT)
    chosen = {"action": "cancel", "_selected_action": [waiting.pk, sent.pk], "index": "0"}
    assert "1 other of the chosen is passed over" in post(browser, chosen).content.decode()
    page = operate(browser, "requeue", waiting, sent)
    assert "is for none of the chosen" in page.content.decode()


def test_mail_whose_content_is_forgotten_is_neither_queued_nor_sent_again(
    browser, queue_mail
) -> None:
    mail = force(queue_mail(), Status.FAILED, envelope="")
    for action in ("requeue", "send_again"):
        page = operate(browser, action, mail)
        assert "is for none of the chosen" in page.content.decode()
    assert EmailLog.objects.count() == 1
    assert status_of(mail) == "failed"


def test_all_that_a_filter_finds_can_be_chosen_at_once(browser, queue_mail) -> None:
    multiply(queue_mail(queue="wanted"), 60)
    other = queue_mail()
    first = EmailLog.objects.filter(queue="wanted").last()
    chosen = {"action": "cancel", "_selected_action": [first.pk], "select_across": "1"}
    asked = post(browser, {**chosen, "index": "0"}, "?queue=wanted")
    assert "for 61 e-mails?" in asked.content.decode()
    post(browser, {**chosen, "confirmed": "yes"}, "?queue=wanted")
    assert EmailLog.objects.filter(status="cancelled").count() == 61
    assert status_of(other) == "queued"


def test_more_than_are_counted_are_refused(browser, queue_mail, monkeypatch) -> None:
    monkeypatch.setattr("django_epica_mail.admin.operations.MOST", 5)
    mail = queue_mail()
    multiply(mail, 6)
    chosen = {"action": "cancel", "_selected_action": [mail.pk], "select_across": "1"}
    page = post(browser, {**chosen, "confirmed": "yes"})
    assert "too many at once" in page.content.decode()
    assert EmailLog.objects.filter(status="queued").count() == 7


def test_who_may_only_look_is_offered_nothing_and_does_nothing(site, queue_mail) -> None:
    browser, mail = log_in("view_emaillog"), queue_mail()
    assert 'name="action"' not in browser.get(reverse(LIST)).content.decode()
    operate(browser, "cancel", mail)
    post(browser, {"action": "cancel", "_selected_action": [mail.pk], "confirmed": "yes"})
    assert status_of(mail) == "queued"
    assert logged() == []


def test_an_operation_needs_djangos_token(browser, queue_mail, settings) -> None:
    mail = queue_mail()
    chosen = {"action": "cancel", "_selected_action": [mail.pk], "confirmed": "yes"}
    assert browser.post(reverse(LIST), chosen).status_code == 403
    assert browser.get(reverse(LIST), chosen).status_code in (302, 400)
    assert status_of(mail) == "queued"


def test_the_export_has_data_and_no_content_and_no_formulas(
    browser, smtp, queue_mail, deliver
) -> None:
    smtp.inject(refuse("rcpt", 550, "=cmd|' /C calc'!A0", times=1))
    first = queue_mail("a@example.com", "b@example.com", subject='=HYPERLINK("http://x")')
    second = queue_mail(subject=' +1; ığüşöç, "quoted"')
    deliver()
    page = operate(browser, "export_csv", first, second)
    assert page["Content-Disposition"] == 'attachment; filename="e-mails.csv"'
    assert page["X-Content-Type-Options"] == "nosniff"
    text = b"".join(page.streaming_content).decode("utf-8-sig")
    assert "Body" not in text
    rows = {row["id"]: row for row in csv.DictReader(io.StringIO(text))}
    assert rows[str(first.pk)]["subject"] == '\'=HYPERLINK("http://x")'
    assert rows[str(first.pk)]["recipients"] == "a@example.com b@example.com"
    assert rows[str(second.pk)]["subject"] == '\' +1; ığüşöç, "quoted"'
    for row in rows.values():
        assert not [cell for cell in row.values() if cell.strip().startswith(tuple("=+-@"))]
    assert len(logged()) == 2


def test_a_message_with_an_attachment_and_an_id_of_its_own_is_sent_again_whole(db) -> None:
    message = EmailMessage("S", "B", None, ["a@example.com"], headers={"Message-ID": "<x@y.z>"})
    message.attach("data.bin", b"\x00\x01", "application/octet-stream")
    old = force(outbox.enqueue(message, transport="smtp"), Status.SENT)
    (new,) = outbox.send_again([old.pk])
    assert new.message_id not in ("<x@y.z>", "")
    assert bytes(new.attachments.get().content) == bytes(old.attachments.get().content)
    assert new.attachments.get().pk != old.attachments.get().pk


def test_one_unreadable_mail_does_not_keep_others_from_being_sent_again(db, queue_mail) -> None:
    bad, good = (force(queue_mail(), Status.SENT) for _ in range(2))
    EmailLog.objects.filter(pk=bad.pk).update(envelope='{"v": 99}')
    assert len(outbox.send_again([bad.pk, good.pk])) == 1


def test_a_verdict_that_there_is_not_is_refused(db, queue_mail) -> None:
    with pytest.raises(ValueError, match="'maybe'"):
        outbox.decide([queue_mail().pk], "maybe")


def test_a_decision_is_announced_after_its_commit(
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


def test_the_content_goes_when_a_decision_ends_the_mail(db, queue_mail) -> None:
    mail = force(queue_mail(keep_content="until_sent"), Status.UNKNOWN)
    outbox.decide([mail.pk], "arrived")
    assert EmailLog.objects.get(pk=mail.pk).envelope == ""
