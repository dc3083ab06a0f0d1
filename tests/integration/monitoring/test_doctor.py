"""Each finding of the doctor, with the problem that causes it."""

from __future__ import annotations

from typing import Any

import django
import pytest
from cryptography.fernet import Fernet
from django.core.management import call_command
from django.db import DatabaseError, connection
from django.utils import timezone

from devservers.smtp import SMTPServer
from django_epica_mail import clock, maintenance, outbox
from django_epica_mail.models import DeliveryGate, EmailEvent, EmailLog, ReputationDay
from django_epica_mail.monitoring import celery_findings, doctor
from django_epica_mail.monitoring.doctor import Finding
from django_epica_mail.privacy.reencrypt import reencrypt
from tests.databases import no_migrations

pytestmark = pytest.mark.django_db

SMTP = "django.core.mail.backends.smtp.EmailBackend"


def found(name: str, **options: Any) -> Finding:
    (finding,) = [it for it in doctor.examine(**options) if it.id == name]
    assert finding.text
    assert finding.remedy
    return finding


def ids(**options: Any) -> set[str]:
    return {it.id for it in doctor.examine(**options)}


def test_a_missing_beat_is_found(queue_mail, travel, rings) -> None:
    queue_mail()
    assert "no-sweep" not in ids()  # a sweep is not overdue yet
    travel(minutes=6)
    assert "The last sweep was never" in found("no-sweep").text
    maintenance.dispatch()
    assert "no-sweep" not in ids()
    travel(minutes=6)
    assert found("no-sweep").level == "error"


def test_missing_tables_are_found(transactional_db) -> None:
    def refuse_all(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        return execute(sql.replace("epica_mail_emaillog", "no_such_table"), params, many, context)

    with connection.execute_wrapper(refuse_all):
        finding = found("database")
        with pytest.raises(DatabaseError):
            EmailLog.objects.count()
    assert "Make sure that the database is running" in finding.remedy


def test_migrations_that_have_not_run_are_found(transactional_db) -> None:
    def refuse_all(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        return execute(sql.replace("epica_mail_emaillog", "no_such_table"), params, many, context)

    with no_migrations(), connection.execute_wrapper(refuse_all):
        finding = found("database")
    assert finding.text == "The tables of mail do not exist yet: no mail can be queued."
    assert finding.remedy == "Run manage.py migrate."


def test_mail_held_back_is_found(smtp, queue_mail, deliver) -> None:
    outbox.pause(queue="bulk_emails")
    assert found("paused").level == "info"
    smtp.refuse_connections()
    queue_mail()
    deliver()
    assert "transport smtp" in found("out-of-order").text


def test_a_command_to_copy_has_no_command_of_somebody_elses(smtp) -> None:
    DeliveryGate.objects.create(scope="queue", name="a; rm -rf ~", paused=True)
    assert "resume --queue 'a; rm -rf ~'." in found("paused").remedy
    assert celery_findings.option_q({"emails", "$(rm -rf ~)"}).startswith("'celery,$(rm")


def test_mail_for_a_removed_transport_is_found(smtp, queue_mail) -> None:
    mails = [queue_mail(transport="yesterday's") for _ in range(7)]
    finding = found("transport-gone")
    assert finding.text.startswith('7 e-mails in emails wait for the transport "yesterday\'s"')
    assert [str(mail.pk) in finding.text for mail in mails] == [True] * 5 + [False] * 2
    option = """--transport 'yesterday'"'"'s'"""
    for command in (f"epica_mail move {option} --to ALIAS", f"epica_mail cancel {option}"):
        assert command in finding.remedy


def test_send_mail_without_the_queue_is_found(smtp, settings) -> None:
    assert "send-mail-not-queued" not in ids()
    if django.VERSION >= (6, 1):
        settings.MAILERS = {**settings.MAILERS, "default": settings.MAILERS["smtp"]}
    else:
        settings.EMAIL_BACKEND = SMTP
    assert found("send-mail-not-queued").level == "warning"


def test_an_unreachable_transport_is_found_only_on_request(smtp) -> None:
    smtp.refuse_connections()
    assert "transport" not in ids()
    assert "ConnectionRefusedError" in found("transport", open_transports=True).text
    smtp.listen_again()
    assert "transport" not in ids(open_transports=True)


def test_a_mailbox_for_bounces_that_cannot_be_opened_is_an_error(
    smtp, epica_mail, tmp_path
) -> None:
    epica_mail(BOUNCE_MAILBOX=f"maildir:{tmp_path}")
    assert "bounce-mailbox" not in ids()
    assert "is no Maildir" in found("bounce-mailbox", open_transports=True).text
    for name in ("new", "cur"):
        (tmp_path / name).mkdir()
    assert "bounce-mailbox" not in ids(open_transports=True)
    assert smtp.accepted == []


def test_refused_credentials_are_found(smtp, settings, epica_mail) -> None:
    with SMTPServer(credentials={"user": "right"}) as server:
        options = {"host": server.host, "port": server.port, "username": "user"}
        for password, is_found in (("mistyped", True), ("right", False)):
            spec = {"BACKEND": SMTP, "OPTIONS": {**options, "password": password}}
            if django.VERSION >= (6, 1):
                settings.MAILERS = {**settings.MAILERS, "smtp": spec}
            else:
                epica_mail(TRANSPORTS={"smtp": spec})
            assert ("credentials" in ids(open_transports=True)) is is_found
            if is_found:
                finding = found("credentials", open_transports=True)
                assert "535" in finding.text or "5.7.8" in finding.text
                assert "mistyped" not in finding.text + finding.remedy


def test_findings_of_the_checks_come_first(smtp, epica_mail, settings) -> None:
    epica_mail(ROUTES=[{"transport": ["gone", "smtp"]}])
    settings.DEFAULT_FROM_EMAIL = "webmaster@localhost"
    first, *_ = doctor.examine()
    assert (first.level, first.id) == ("error", "epica_mail.E004")
    assert first.remedy == "Name a real transport. There are: smtp."
    assert found("epica_mail.W004").level == "warning"


def test_checks_that_the_site_silences_are_left_out(smtp, epica_mail, settings) -> None:
    epica_mail(REDIRECT_ALL_TO=["staging@example.com"])
    assert "epica_mail.W020" in ids()
    settings.SILENCED_SYSTEM_CHECKS = ["epica_mail.W020"]
    assert "epica_mail.W020" not in ids()


def test_an_invalid_setting_hides_all_other_findings(settings) -> None:
    settings.EPICA_MAIL = {"BATCH_SIZE": 0}
    assert ids() == {"epica_mail.E001"}


def test_it_explains_where_a_mail_would_go(smtp, epica_mail) -> None:
    epica_mail(
        ROUTES=[
            {"match": {"to": "*@gov.tr"}, "queue": "official", "transport": ["ses", "smtp"]},
            {"match": {"bulk": True}, "priority": 1},
            {"match": {"from": "shop@example.com", "category": "order"}, "priority": "low"},
        ]
    )
    official = doctor.explain("A@GOV.TR")
    assert (official.rule, official.match) == (0, {"to": "*@gov.tr"})
    assert (official.queue, official.queue_by) == ("official", "ROUTES")
    assert (official.priority, official.priority_by) == (9, "default")
    assert official.transports == ["ses", "smtp"]
    assert doctor.explain("a@example.com").rule == "none"
    assert doctor.explain("a@example.com", bulk=True).priority == 1
    assert doctor.explain("a@example.com", category="order").rule == 2


def test_plain_content_is_found_while_keys_are_set(queue_mail, epica_mail) -> None:
    queue_mail()
    assert "plain-content" not in ids()
    epica_mail(ENCRYPTION_KEYS=[Fernet.generate_key().decode()])
    queue_mail()
    assert found("plain-content").level == "warning"
    reencrypt()
    assert "plain-content" not in ids()


def count_day(category: str, **counts: int) -> None:
    today = timezone.now().date()
    ReputationDay.objects.create(day=today, category=category, domain="a.example", **counts)


def test_rates_above_their_limits_are_found() -> None:
    count_day("orders", mails=5000, bounced=20)
    assert "reputation" not in ids()
    count_day("news", mails=1000, complained=4, bounced=7)
    count_day("offers", mails=1000, bounced=60)
    critical, warning = (it for it in doctor.examine() if it.id == "reputation")
    assert (critical.level, warning.level) == ("error", "warning")
    assert critical.text == (
        "Critical: news from a.example: 0.40% complaints and 0.70% bounces among 1000 mails of "
        "7 days."
    )
    assert warning.text.startswith("Warning: offers from a.example: 0.00% complaints and 6.00%")
    assert critical.remedy


def test_the_exit_code_says_that_a_rate_is_critical(smtp, epica_mail, monkeypatch) -> None:
    monkeypatch.setattr(celery_findings, "of_workers", lambda using: ())
    count_day("offers", mails=1000, bounced=60)
    call_command("epica_mail", "doctor")
    count_day("news", mails=1000, complained=4)
    with pytest.raises(SystemExit, match="1"):
        call_command("epica_mail", "doctor")


def test_a_guard_that_hears_of_nothing_is_found(queue_mail, epica_mail) -> None:
    log = queue_mail()
    count_day("news", mails=999)
    epica_mail(PAUSE_ON_REPUTATION=True)
    assert "nothing-comes-back" not in ids(), "so few mails may all have arrived"
    count_day("orders", mails=1)
    assert "for 1000 mails of 7 days" in found("nothing-comes-back").text
    epica_mail(PAUSE_ON_REPUTATION=False)
    assert "nothing-comes-back" not in ids()
    epica_mail(PAUSE_ON_REPUTATION=True)
    for number, (kind, reason, is_heard) in enumerate(
        [
            ("opened", "", False),
            ("bounced", "unauthenticated", False),
            ("delivered", "", True),
        ]
    ):
        EmailEvent.objects.create(
            email=log, key=f"{number}", kind=kind, reason=reason, at=timezone.now(),
            created_at=clock.now(), source="SendGrid",
        )  # fmt: skip
        assert ("nothing-comes-back" not in ids()) is is_heard, kind


def test_what_came_back_long_ago_does_not_count(queue_mail, epica_mail, travel) -> None:
    epica_mail(PAUSE_ON_REPUTATION=True)
    EmailEvent.objects.create(
        email=queue_mail(), key="k", kind="bounced", at=timezone.now(), created_at=clock.now()
    )
    travel(days=6)
    day = (timezone.now() + clock.offset).date()
    ReputationDay.objects.create(day=day, category="news", domain="a.example", mails=1000)
    assert "nothing-comes-back" not in ids()
    travel(days=2)
    assert found("nothing-comes-back").level == "warning"
