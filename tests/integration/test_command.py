"""``manage.py epica_mail``, as a person or a cron job runs it."""

from __future__ import annotations

import json
from io import StringIO

import pytest
from django.core.management import CommandError, call_command

from django_epica_mail import gates
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
    assert json.loads(run("status", "--json")) == {"queues": {}, "held back": {}}


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
