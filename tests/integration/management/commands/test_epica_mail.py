"""``manage.py epica_mail``, as a person or a cron job runs it."""

from __future__ import annotations

import json
import re
from datetime import timedelta
from io import StringIO

import pytest
from celery import current_app
from django.core.management import CommandError, call_command
from django.utils import timezone

from devservers.smtp_faults import drop, refuse
from django_epica_mail import maintenance
from django_epica_mail.delivery import claim, gates
from django_epica_mail.models import DeliveryGate, EmailBatch, EmailLog

pytestmark = pytest.mark.django_db


def run(*arguments: str) -> str:
    said = StringIO()
    call_command("epica_mail", *arguments, stdout=said)
    return said.getvalue()


def test_status_counts_mail_by_queue_and_status(smtp, queue_mail, deliver) -> None:
    queue_mail()
    deliver()
    waiting = queue_mail()
    queue_mail(queue="bulk_emails")
    report = json.loads(run("status", "--json"))
    emails = report["queues"]["emails"]
    assert emails.pop("oldest due") == str(waiting.due_at)
    assert 0 <= emails.pop("oldest due age") < 60
    assert emails == {"waiting": 1, "due": 1, "in flight": 0, "queued": 1, "sent": 1}
    assert report["queues"]["bulk_emails"]["queued"] == 1
    assert report["held back"] == {}


def test_status_says_what_is_held_back_and_why(smtp, queue_mail, deliver) -> None:
    queue_mail()
    smtp.refuse_connections()
    deliver()
    run("pause", "--queue", "bulk_emails")
    held_back = json.loads(run("status", "--json"))["held back"]
    assert held_back["queue bulk_emails"] == "paused"
    assert held_back["transport smtp"].startswith("out of order: ConnectionRefusedError")


def test_status_without_json_is_for_people(queue_mail) -> None:
    queue_mail()
    lines = [line.split() for line in run("status").splitlines()]
    assert ["emails", "1", "0", "1", "0", "s", "0", "0"] in lines
    assert ["last", "sweep:", "never"] in lines


def test_an_empty_queue_has_a_status_too() -> None:
    assert json.loads(run("status", "--json")) == {
        "queues": {},
        "hours": 24,
        "unfinished batches": 0,
        "last sweep": None,
        "last sweep age": None,
        "held back": {},
    }
    assert "There is no mail." in run("status")


def test_status_never_shows_an_address(queue_mail) -> None:
    queue_mail("secret@example.com")
    assert "secret" not in run("status")


def test_dispatch_does_what_the_sweep_does(smtp, queue_mail, rings) -> None:
    queue_mail()
    rings.clear()
    report = json.loads(run("dispatch", "--json"))
    assert report == {"rescued": 0, "overdue": 0, "rerouted": 0, "rung": 1}
    assert rings == ["emails"]
    assert DeliveryGate.objects.get(name="emails").last_sweep_at is not None


def test_purge_deletes_what_is_old_enough(smtp, queue_mail, deliver, travel) -> None:
    queue_mail()
    deliver()
    travel(days=8)
    assert json.loads(run("purge", "--json")) == {"deleted": 0}
    assert run("purge", "--days", "7").split() == ["deleted", "1"]
    assert EmailLog.objects.count() == 0


def test_a_queue_is_paused_and_resumed() -> None:
    assert json.loads(run("pause", "--queue", "emails", "--json")) == {
        "queue": "emails",
        "paused": True,
    }
    assert not gates.Gates("default").queue_is_open("emails")
    run("resume", "--queue", "emails")
    assert gates.Gates("default").queue_is_open("emails")


def test_a_transport_is_paused_and_resumed() -> None:
    run("pause", "--transport", "smtp")
    assert gates.Gates("default").open_transports(["smtp"]) == []
    run("resume", "--transport", "smtp")
    assert gates.Gates("default").open_transports(["smtp"]) == ["smtp"]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["explode"],
        ["pause"],
        ["pause", "--queue", "emails", "--transport", "smtp"],
        ["purge", "--days", "many"],
    ],
    ids=" ".join,
)
def test_what_is_not_understood_is_refused(arguments) -> None:
    with pytest.raises(CommandError):
        run(*arguments)
    assert DeliveryGate.objects.count() == 0


def test_failed_mail_is_queued_again_by_id_or_all_that_may_pass(smtp, queue_mail, deliver) -> None:
    smtp.inject(refuse("rcpt", 550, "5.1.1 No such user", times=1))
    log = queue_mail()
    deliver()
    assert json.loads(run("retry", "--json")) == {"queued": 0}
    assert json.loads(run("retry", str(log.pk), "--json")) == {"queued": 1}
    log.refresh_from_db()
    assert log.status == "queued"


def test_cancel_says_which_mail_was_too_late_and_ends_with_1(smtp, queue_mail, deliver) -> None:
    sent = queue_mail()
    deliver()
    waiting = queue_mail()
    assert run("cancel", str(waiting.pk)).split() == [
        *("cancelled", str(waiting.pk)),
        *("too", "late", "-"),
    ]
    with pytest.raises(SystemExit) as ended:
        run("cancel", str(sent.pk))
    assert ended.value.code == 1


def test_a_test_mail_is_queued_and_its_fate_told(smtp, monkeypatch) -> None:
    report = json.loads(run("send-test", "to@example.com", "--json"))
    assert EmailLog.objects.get(pk=report["id"]).category == "test"
    assert report["status"] == "queued"
    with pytest.raises(SystemExit):
        run("send-test", "to@example.com", "--wait", "0.1")


def test_the_doctor_ends_with_1_when_something_is_wrong(smtp, settings, monkeypatch) -> None:
    said = StringIO()
    with pytest.raises(SystemExit) as ended:  # no broker answers in these tests
        call_command("epica_mail", "doctor", stdout=said)
    assert ended.value.code == 1
    first, remedy, *_ = said.getvalue().splitlines()
    assert re.match(r"error    The broker cannot be asked for its workers .* \(broker\)", first)
    assert remedy.startswith("         Start it")
    settings.DEBUG = True
    monkeypatch.setitem(current_app.conf, "task_always_eager", True)
    assert run("doctor") == "Nothing is wrong.\n"


class Terminal(StringIO):
    """What a person looks at."""

    def isatty(self) -> bool:
        return True


def test_status_tells_what_waits_from_what_is_due_and_how_long(smtp, queue_mail, travel) -> None:
    later = timezone.now() + timedelta(days=2)
    queue_mail(send_at=later)
    queue_mail(transport="yesterdays", priority=3)
    travel(minutes=5)
    queue_mail()
    emails = json.loads(run("status", "--json"))["queues"]["emails"]
    assert (emails["waiting"], emails["due"], emails["queued"]) == (3, 2, 3)
    assert 300 <= emails["oldest due age"] < 330
    assert "5 min" in run("status")


def test_status_tells_mail_between_tries_from_mail_never_tried(smtp, queue_mail, deliver) -> None:
    smtp.inject(refuse("rcpt", 451, "4.3.0 Later", times=1))
    smtp.inject(drop("content", times=1))
    queue_mail()
    queue_mail(on_unknown="hold")
    deliver()
    queue_mail()
    emails = json.loads(run("status", "--json"))["queues"]["emails"]
    assert (emails["waiting"], emails["due"]) == (2, 1)
    assert (emails["queued"], emails["retrying"], emails["unknown"]) == (1, 1, 1)


def test_status_counts_what_is_in_flight(smtp, queue_mail) -> None:
    queue_mail()
    assert claim.claim("emails") is not None
    emails = json.loads(run("status", "--json"))["queues"]["emails"]
    assert (emails["waiting"], emails["in flight"], emails["sending"]) == (0, 1, 1)


def test_status_leaves_history_out(smtp, queue_mail, deliver, travel) -> None:
    queue_mail()
    deliver()
    travel(hours=23)
    assert json.loads(run("status", "--json"))["queues"]["emails"]["sent"] == 1
    travel(hours=2)
    assert "sent" not in json.loads(run("status", "--json"))["queues"]["emails"]
    assert "in the last 24 hours" in run("status")


def test_status_tells_of_bulk_calls_and_of_the_last_sweep(smtp, queue_mail, travel) -> None:
    EmailBatch.objects.create(total=3, payload="[]")
    queue_mail()
    maintenance.dispatch()
    travel(minutes=10)
    report = json.loads(run("status", "--json"))
    assert report["unfinished batches"] == 1
    assert 600 <= report["last sweep age"] < 630
    assert "last sweep: 10 min ago" in run("status")


@pytest.mark.parametrize("stderr", [StringIO, Terminal])
@pytest.mark.parametrize(
    ("action", "words"), [("retry", "1 queued again so far"), ("purge", "1 deleted so far")]
)
def test_long_work_shows_how_far_it_is_to_people_alone(
    smtp, queue_mail, deliver, travel, action, words, stderr
) -> None:
    smtp.inject(refuse("rcpt", 451, "4.3.0 Later"))
    queue_mail()
    EmailLog.objects.update(max_retries=0)
    deliver()
    if action == "purge":
        travel(days=31)
    said = stderr()
    call_command("epica_mail", action, stdout=StringIO(), stderr=said, no_color=True)
    assert said.getvalue() == (f"{words}\n" if stderr is Terminal else "")


def test_a_transport_that_there_is_not_is_neither_paused_nor_tested(smtp) -> None:
    for arguments in (["pause", "--transport", "smpt"], ["send-test", "a@b.c", "--transport", "x"]):
        with pytest.raises(CommandError, match="There are: smtp"):
            run(*arguments)
    assert not DeliveryGate.objects.exists()


def test_a_test_mail_that_cannot_be_sent_is_refused(smtp) -> None:
    with pytest.raises(CommandError, match="newline"):
        run("send-test", "nobody\n@example.com")
    assert not EmailLog.objects.exists()


def test_a_test_mail_that_fails_ends_with_1_and_the_servers_words(
    smtp, transactional_db, monkeypatch
) -> None:
    smtp.inject(refuse("rcpt", 550, "5.1.1 No such user"))
    monkeypatch.setitem(current_app.conf, "task_always_eager", True)
    said = StringIO()
    with pytest.raises(SystemExit) as ended:
        call_command("epica_mail", "send-test", "a@example.com", "--json", stdout=said)
    assert ended.value.code == 1
    report = json.loads(said.getvalue())
    assert (report["status"], report["transport"]) == ("failed", "smtp")
    assert report["reply"].startswith("5.1.1")


def test_the_doctor_explains_a_route() -> None:
    assert json.loads(run("doctor", "--explain", "a@example.com", "--json"))["queue"] == "emails"


def test_a_purge_of_no_days_is_refused() -> None:
    with pytest.raises(CommandError, match="--days must be 1 or more; it is 0"):
        run("purge", "--days", "0")
