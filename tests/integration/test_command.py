"""``manage.py epica_mail``, as a person or a cron job runs it."""

from __future__ import annotations

import json
from io import StringIO

import pytest
from django.core.management import CommandError, call_command

from devservers.smtp_faults import refuse
from django_epica_mail import doctor, gates
from django_epica_mail.models import DeliveryGate, EmailLog

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
    assert report["queues"]["emails"].pop("oldest due") == str(waiting.due_at)
    assert report["queues"]["emails"] == {"queued": 1, "sent": 1}
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
    assert ["emails"] in lines
    assert ["queued", "1"] in lines


def test_an_empty_queue_has_a_status_too() -> None:
    assert json.loads(run("status", "--json")) == {
        "queues": {},
        "unfinished batches": 0,
        "last sweep": None,
        "held back": {},
    }


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
    assert run("pause", "--queue", "emails") == ""
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
    assert run("cancel", str(waiting.pk)).split() == ["cancelled", str(waiting.pk), "too", "late"]
    with pytest.raises(SystemExit) as ended:
        run("cancel", str(sent.pk))
    assert ended.value.code == 1


def test_a_test_mail_is_queued_and_its_fate_told(smtp, monkeypatch) -> None:
    report = json.loads(run("send-test", "to@example.com", "--json"))
    assert EmailLog.objects.get(pk=report["id"]).category == "test"
    assert report["status"] == "queued"
    with pytest.raises(SystemExit):
        run("send-test", "to@example.com", "--wait", "0.1")


def test_the_doctor_ends_with_1_when_something_is_wrong(smtp, monkeypatch) -> None:
    finding = doctor.Finding(level="error", text="Broken.", remedy="Mend it.")
    monkeypatch.setattr(doctor, "examine", lambda **_: [finding])
    said = StringIO()
    with pytest.raises(SystemExit) as ended:
        call_command("epica_mail", "doctor", stdout=said)
    assert ended.value.code == 1
    assert said.getvalue().split() == ["error", "Broken.", "Mend", "it."]
    monkeypatch.setattr(doctor, "examine", lambda **_: [])
    assert run("doctor") == "Nothing is wrong.\n"


def test_the_doctor_explains_a_route() -> None:
    assert json.loads(run("doctor", "--explain", "a@example.com", "--json"))["queue"] == "emails"


def test_a_purge_of_no_days_is_refused() -> None:
    with pytest.raises(CommandError, match="--days must be 1 or more; it is 0"):
        run("purge", "--days", "0")
