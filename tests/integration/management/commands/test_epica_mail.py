"""``manage.py epica_mail``, as run by a person or a cron job."""

from __future__ import annotations

import json
import re
import time
from datetime import timedelta
from functools import partial
from io import StringIO
from typing import Any

import pytest
from celery import current_app
from django.core.management import CommandError, call_command
from django.db import OperationalError, connection
from django.utils import timezone

from devservers.smtp_faults import drop, refuse
from django_epica_mail import maintenance
from django_epica_mail.delivery import claim, gates
from django_epica_mail.delivery.limits import slowed_domains
from django_epica_mail.models import DeliveryGate, EmailBatch, EmailLog, Suppression
from django_epica_mail.retry import Failure, Kind, Scope
from django_epica_mail.tracking.bounces import verp
from tests.databases import no_migrations
from tests.returned import returned

pytestmark = pytest.mark.django_db


def run(*arguments: str) -> str:
    output = StringIO()
    call_command("epica_mail", *arguments, stdout=output)
    return output.getvalue()


def test_status_counts_mail_by_queue_and_status(smtp, queue_mail, deliver) -> None:
    queue_mail()
    deliver()
    waiting = queue_mail()
    queue_mail(queue="bulk_emails")
    report = json.loads(run("status", "--json"))
    emails = report["queues"]["emails"]
    assert emails.pop("oldest_due") == str(waiting.due_at)
    assert 0 <= emails.pop("oldest_due_age") < 60
    assert emails == {"waiting": 1, "due": 1, "in_flight": 0, "queued": 1, "sent": 1}
    assert report["queues"]["bulk_emails"]["queued"] == 1
    assert report["held_back"] == {}


def test_status_reports_what_is_held_back_and_why(smtp, queue_mail, deliver) -> None:
    queue_mail()
    smtp.refuse_connections()
    deliver()
    run("pause", "--queue", "bulk_emails")
    held_back = json.loads(run("status", "--json"))["held_back"]
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
        "unfinished_batches": 0,
        "set_apart": 0,
        "last_sweep": None,
        "last_sweep_age": None,
        "held_back": {},
        "slowed_domains": [],
        "reputation": [],
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


def test_bounces_takes_one_message_from_a_file(smtp, queue_mail, deliver, tmp_path) -> None:
    log = queue_mail("gone@example.net")
    deliver()
    file = tmp_path / "bounce.eml"
    file.write_bytes(returned("qmail", to="bounces@example.com", message_id="<x@example.com>"))
    bounces = partial(run, "bounces", "--file", str(file))
    assert json.loads(bounces("--json")) == {"received": "unmatched"}
    to = verp.address("bounces+{id}@example.com", log.pk)
    assert bounces("--to", to).split() == ["received", "recorded"]
    assert Suppression.objects.get().address == "gone@example.net"
    assert bounces("--to", to).split() == ["received", "known"]


def test_bounces_ends_with_75_while_a_message_cannot_be_stored(tmp_path, monkeypatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OperationalError("the database is down")

    monkeypatch.setattr("django_epica_mail.tracking.bounces.incoming.receive", refuse)
    file = tmp_path / "bounce.eml"
    file.write_bytes(b"x")
    with pytest.raises(CommandError, match="the database is down") as caught:
        run("bounces", "--file", str(file))
    assert caught.value.returncode == 75
    with pytest.raises(CommandError, match="No such file"):
        run("bounces", "--file", str(tmp_path / "none"))


def test_bounces_reads_the_mailbox_or_says_why_it_cannot(tmp_path, epica_mail) -> None:
    with pytest.raises(CommandError, match="BOUNCE_MAILBOX"):
        run("bounces")
    epica_mail(BOUNCE_MAILBOX=f"maildir:{tmp_path}")
    with pytest.raises(CommandError, match="is no Maildir"):
        run("bounces")
    for name in ("new", "cur"):
        (tmp_path / name).mkdir()
    (tmp_path / "new" / "1").write_bytes(b"Subject: x\n\nx")
    assert "unrecognised  1" in run("bounces")


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


@pytest.mark.parametrize("scope", ["queue", "transport", "category"])
def test_a_pause_has_a_note(smtp, scope) -> None:
    name = {"queue": "emails", "transport": "smtp", "category": "news"}[scope]
    run("pause", f"--{scope}", name, "--note", "until\nnoon \x1b")
    gate = DeliveryGate.objects.get(scope=scope, name=name)
    assert (gate.paused, gate.note) == (True, r"until noon \x1b")


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
def test_invalid_arguments_are_refused(arguments) -> None:
    with pytest.raises(CommandError):
        run(*arguments)
    assert DeliveryGate.objects.count() == 0


def test_retry_takes_ids_or_finds_retryable_mail(smtp, queue_mail, deliver) -> None:
    smtp.inject(refuse("rcpt", 550, "5.1.1 No such user", times=1))
    log = queue_mail()
    deliver()
    assert json.loads(run("retry", "--json")) == {"queued": 0}
    assert json.loads(run("retry", str(log.pk), "--json")) == {"queued": 1}
    log.refresh_from_db()
    assert log.status == "queued"


def test_cancel_reports_mail_that_was_too_late_and_exits_with_1(smtp, queue_mail, deliver) -> None:
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


def test_a_test_mail_is_queued_and_its_status_reported(smtp, monkeypatch) -> None:
    report = json.loads(run("send-test", "to@example.com", "--json"))
    assert EmailLog.objects.get(pk=report["id"]).category == "test"
    assert report["status"] == "queued"
    with pytest.raises(SystemExit):
        run("send-test", "to@example.com", "--wait", "0.1")


def test_a_test_mail_says_what_holds_it_back(smtp, monkeypatch) -> None:
    assert json.loads(run("send-test", "to@example.com", "--json"))["held_back"] == []
    run("pause", "--queue", "emails")
    report = json.loads(run("send-test", "to@example.com", "--json"))
    assert report["held_back"] == ["queue emails: paused"]
    assert "held back  queue emails: paused" in run("send-test", "to@example.com")
    run("resume", "--queue", "emails")
    monkeypatch.setattr("django_epica_mail.broker.workers.consumed", lambda: {"w": ["celery"]})
    output = StringIO()
    with pytest.raises(SystemExit):
        call_command(
            "epica_mail", "send-test", "to@example.com", "--wait", "0.1", "--json", stdout=output
        )
    reasons = json.loads(output.getvalue())["held_back"]
    assert any("consumes the queue emails" in reason for reason in reasons)


def test_a_dry_run_of_erase_says_that_it_is_one(queue_mail) -> None:
    queue_mail("ann@example.com")
    first, *_ = run("erase", "ann@example.com", "--dry-run").splitlines()
    assert first.startswith("This was a dry run: nothing was erased.")
    assert json.loads(run("erase", "ann@example.com", "--dry-run", "--json"))["dry_run"] is True
    assert EmailLog.objects.count() == 1


@pytest.mark.parametrize("action", ["status", "doctor"])
def test_before_migrate_an_action_says_so_in_a_line(transactional_db, action) -> None:
    def refuse(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        return execute(sql.replace("epica_mail_emaillog", "no_table"), params, many, context)

    output = StringIO()
    with (
        no_migrations(),
        connection.execute_wrapper(refuse),
        pytest.raises((CommandError, SystemExit)) as told,
    ):
        call_command("epica_mail", action, stdout=output)
    words = output.getvalue() + str(told.value)
    assert "The tables of mail do not exist yet" in words
    assert "manage.py migrate" in words


def test_the_doctor_exits_with_1_if_something_is_wrong(smtp, settings, monkeypatch) -> None:
    output = StringIO()
    with pytest.raises(SystemExit) as ended:  # there is no broker in these tests
        call_command("epica_mail", "doctor", stdout=output)
    assert ended.value.code == 1
    first, remedy, *_ = output.getvalue().splitlines()
    assert re.match(r"error    The broker cannot be asked for its workers .* \(broker\)", first)
    assert remedy.startswith("         Start it")
    settings.DEBUG = True
    monkeypatch.setitem(current_app.conf, "task_always_eager", True)
    assert run("doctor") == "Nothing is wrong.\n"


class Terminal(StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


def test_status_separates_waiting_mail_from_due_mail(smtp, queue_mail, travel) -> None:
    later = timezone.now() + timedelta(days=2)
    queue_mail(send_at=later)
    queue_mail(transport="yesterdays", priority=3)
    travel(minutes=5)
    queue_mail()
    emails = json.loads(run("status", "--json"))["queues"]["emails"]
    assert (emails["waiting"], emails["due"], emails["queued"]) == (3, 2, 3)
    assert 300 <= emails["oldest_due_age"] < 330
    assert "5 min" in run("status")


def test_status_separates_retrying_mail_from_new_mail(smtp, queue_mail, deliver) -> None:
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
    assert (emails["waiting"], emails["in_flight"], emails["sending"]) == (0, 1, 1)


def test_status_leaves_history_out(smtp, queue_mail, deliver, travel) -> None:
    queue_mail()
    deliver()
    travel(hours=23)
    assert json.loads(run("status", "--json"))["queues"]["emails"]["sent"] == 1
    travel(hours=2)
    assert "sent" not in json.loads(run("status", "--json"))["queues"]["emails"]
    assert "in the last 24 hours" in run("status")


def test_status_reports_bulk_calls_and_the_last_sweep(smtp, queue_mail, travel) -> None:
    EmailBatch.objects.create(total=3, payload="[]")
    queue_mail()
    maintenance.dispatch()
    travel(minutes=10)
    report = json.loads(run("status", "--json"))
    assert report["unfinished_batches"] == 1
    assert 600 <= report["last_sweep_age"] < 630
    assert "last sweep: 10 min ago" in run("status")


@pytest.mark.parametrize("stderr", [StringIO, Terminal])
@pytest.mark.parametrize(
    ("action", "words"), [("retry", "1 queued again so far"), ("purge", "1 deleted so far")]
)
def test_progress_is_shown_only_on_a_terminal(
    smtp, queue_mail, deliver, travel, action, words, stderr
) -> None:
    smtp.inject(refuse("rcpt", 451, "4.3.0 Later"))
    queue_mail()
    EmailLog.objects.update(max_retries=0)
    deliver()
    if action == "purge":
        travel(days=31)
    output = stderr()
    call_command("epica_mail", action, stdout=StringIO(), stderr=output, no_color=True)
    assert output.getvalue() == (f"{words}\n" if stderr is Terminal else "")


def test_an_unknown_transport_is_neither_paused_nor_tested(smtp) -> None:
    for arguments in (["pause", "--transport", "smpt"], ["send-test", "a@b.c", "--transport", "x"]):
        with pytest.raises(CommandError, match="name one of smtp"):
            run(*arguments)
    assert not DeliveryGate.objects.exists()


@pytest.mark.parametrize("action", ["pause", "resume"])
def test_a_queue_that_is_not_known_is_named_as_such(smtp, queue_mail, action) -> None:
    queue_mail(queue="newsletters")
    words = "No queue 'emials' is known.*settings name bulk_emails, emails"
    with pytest.raises(CommandError, match=words if action == "pause" else "not paused"):
        run(action, "--queue", "emials")
    assert not DeliveryGate.objects.exists()
    run("pause", "--queue", "newsletters")
    EmailLog.objects.all().delete()
    run("resume", "--queue", "newsletters")
    assert gates.Gates("default").queue_is_open("newsletters")


def test_mail_of_a_removed_transport_is_moved_or_cancelled(smtp, queue_mail, deliver) -> None:
    for subject in ("one", "two"):
        queue_mail(subject=subject, transport="yesterdays")
    done = queue_mail(transport="yesterdays")
    EmailLog.objects.filter(pk=done.pk).update(status="sent", pending=None)
    assert deliver() == 0
    for arguments in (["--transport", "yesterdays", "--to", "smpt"], ["--transport", "x", "--to"]):
        with pytest.raises(CommandError, match=r"no transport 'smpt'|waits for a transport 'x'"):
            run("move", *arguments, *(["smtp"] if arguments[-1] == "--to" else []))
    moved = json.loads(run("move", "--transport", "yesterdays", "--to", "smtp", "--json"))
    assert moved == {"moved": 2}
    assert deliver() == 2
    queue_mail(transport="yesterdays")
    report = json.loads(run("cancel", "--transport", "yesterdays", "--json"))
    assert (len(report["cancelled"]), report["too_late"]) == (1, [])
    for arguments in ([], ["--transport", "yesterdays"], [str(done.pk), "--transport", "smtp"]):
        with pytest.raises(CommandError, match=r"Give the ids|No mail waits"):
            run("cancel", *arguments)


def test_an_invalid_test_mail_is_refused(smtp) -> None:
    with pytest.raises(CommandError, match="newline"):
        run("send-test", "nobody\n@example.com")
    assert not EmailLog.objects.exists()


def test_a_failed_test_mail_exits_with_1_and_the_servers_reply(
    smtp, transactional_db, monkeypatch
) -> None:
    smtp.inject(refuse("rcpt", 550, "5.1.1 No such user"))
    monkeypatch.setitem(current_app.conf, "task_always_eager", True)
    output = StringIO()
    with pytest.raises(SystemExit) as ended:
        call_command("epica_mail", "send-test", "a@example.com", "--json", stdout=output)
    assert ended.value.code == 1
    report = json.loads(output.getvalue())
    assert (report["status"], report["transport"]) == ("failed", "smtp")
    assert report["reply"].startswith("5.1.1")


def test_the_doctor_explains_a_route() -> None:
    assert json.loads(run("doctor", "--explain", "a@example.com", "--json"))["queue"] == "emails"


def test_purge_refuses_zero_days() -> None:
    with pytest.raises(CommandError, match="--days must be 1 to 36500; it is 0"):
        run("purge", "--days", "0")


ESCAPES = "\x1b]0;owned\x07\x1b[2J\u202e\x9b31m"


@pytest.mark.parametrize(
    "arguments",
    [
        ("status",), ("doctor",), ("doctor", "--explain", f"a{ESCAPES}@example.com"),
        ("send-test", "to@example.com"), ("pause", "--queue", f"q{ESCAPES}"), ("status", "--json"),
        ("export", "to@example.com"), ("suppressions", "export", "-"),
        ("send-test", f"{ESCAPES}@example.com"), ("erase", ESCAPES, "--noinput"),
        ("pause", "--transport", ESCAPES),
    ],
)  # fmt: skip
def test_no_command_passes_escapes_on_to_a_terminal(
    smtp, queue_mail, deliver, monkeypatch, arguments
) -> None:
    queue_mail()
    EmailLog.objects.update(queue=f"q{ESCAPES}", reply=f"550 {ESCAPES}")
    DeliveryGate.objects.create(scope="transport", name="smtp", outages=3, reason=ESCAPES)
    Suppression.objects.create(address="to@example.com", digest="d", note=f"n{ESCAPES}")
    written = Terminal()
    try:
        call_command("epica_mail", *arguments, stdout=written, stderr=written)
    except CommandError as error:
        written.write(str(error))
    except SystemExit:
        pass
    text = written.getvalue()
    assert text
    assert [it for it in text if not it.isprintable() and it not in "\r\n"] == []


def test_status_tells_which_domain_is_slowed_and_resume_sets_it_free(db) -> None:
    failure = Failure(kind=Kind.THROTTLED, scope=Scope.DOMAIN, reply="4.7.28 too \x1b[31mfast")
    before = time.monotonic() - 9
    slowed_domains.complain("smtp", "gmail.example", failure, before, "default")
    (found,) = json.loads(run("status", "--json"))["slowed_domains"]
    assert (found["transport"], found["domain"]) == ("smtp", "gmail.example")
    assert found["per_minute"] == pytest.approx(480, rel=0.02)
    assert found["since"]
    line = next(it for it in run("status").splitlines() if it.startswith("slowed down"))
    assert "gmail.example to 48" in line
    assert "\x1b" not in line
    assert json.loads(run("resume", "--domain", "GMAIL.example", "--json")) == {
        "domain": "GMAIL.example",
        "slowed": False,
    }
    assert json.loads(run("status", "--json"))["slowed_domains"] == []
    with pytest.raises(CommandError, match="not slowed down"):
        run("resume", "--domain", "gmail.example")


def test_a_domain_is_slowed_by_servers_and_never_paused() -> None:
    with pytest.raises(CommandError):
        run("pause", "--domain", "gmail.example")


def test_lint_reports_what_is_wrong_with_the_templates_of_the_previews(epica_mail) -> None:
    epica_mail(PREVIEWS={"emails/notification": {"title": "Order", "body": "Thank you."}})
    assert run("lint") == "Nothing is wrong.\n"
    assert json.loads(run("lint", "--format", "json")) == {"findings": []}
    epica_mail(PREVIEWS={"emails/notification": {"title": "\x1b{{ title", "body": "Thank you."}})
    output = StringIO()
    with pytest.raises(SystemExit, match="1"):
        call_command("epica_mail", "lint", "--language", "en", stdout=output)
    assert output.getvalue().splitlines()[0] == "emails/notification (en)"
    assert "'{{' in the subject" in output.getvalue()
    assert "\x1b" not in output.getvalue()
    assert run("lint", "--ignore", "left-over") == "Nothing is wrong.\n"
    with pytest.raises(CommandError, match="does not name the template 'nothing'"):
        run("lint", "nothing")
