"""Fast inserts: the same rows as ``bulk_create`` makes, in statements that databases accept."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from django.core.mail import EmailMessage
from django.db import DatabaseError, IntegrityError, connection, models, transaction
from django.db.models.functions import Now
from django.db.models.signals import post_save, pre_save
from django.test.utils import isolate_apps
from django.utils import timezone
from django.utils.safestring import mark_safe

from django_epica_mail import clock, outbox
from django_epica_mail.backends import EmailBackend
from django_epica_mail.models import DeliveryAttempt, EmailLog, EmailRecipient
from django_epica_mail.queueing.rows import sql
from django_epica_mail.transports import config as transports

pytestmark = pytest.mark.django_db


def message(**fields: Any) -> EmailMessage:
    return EmailMessage("Subject", "Body", None, ["to@example.com"], **fields)


def row(**values: Any) -> EmailLog:
    """Return the row of a mail, not yet inserted."""
    now = timezone.now()
    times = {"created_at": now, "due_at": now, "give_up_at": now}
    settings = {"priority": 3, "max_retries": 3, "retry_delay": 1.5, "on_unknown": "hold"}
    return EmailLog(**{"queue": "emails", "transport": "smtp", **times, **settings, **values})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "order",
        "x" * 64,
        "it's",
        '"',
        "100%",
        "%s",
        "%(a)s",
        "a\\",
        "a\nb",
        "order\n",
        "Ayşe",
        "-",
    ],
)
def test_text_is_stored_unchanged(text: str) -> None:
    sql.insert_rows([row(category=text, reply=text)], "default")
    log = EmailLog.objects.get()
    assert (log.category, log.reply) == (text, text)


@pytest.fixture(params=["INSERT", "COPY"])
def way(request, monkeypatch) -> str:
    """Make ``insert_together`` use one of its ways, however few the rows."""
    if request.param == "COPY":
        if sql._cursor_classes(connection.vendor)[1] is None:
            pytest.skip("only psycopg 3 has COPY")
        monkeypatch.setattr(sql, "_COPIED_ROWS", 1)
    return request.param


TEXTS = ["", "it's", "100%", "%s", "a\\", "\\N", "\\.", "a\tb\r\nc", "Ayşe 🎉", "-", "order\n"]


def test_a_row_is_the_same_as_by_bulk_create(way, django_assert_num_queries) -> None:
    values = {
        "subject": mark_safe("safe_word"),  # a subclass of str
        "status": EmailLog.status.field.default,
        "fallbacks": ["a", {"b": [None, 1.5, "'"]}],
        "store_result": True,
        "lease_token": uuid4(),
        "failure_code": 0,
        "pending": None,
        "expires_at": timezone.now() + timedelta(days=1),
    }
    one, two = row(**values), row(**values)
    two.created_at, two.due_at, two.give_up_at = one.created_at, one.due_at, one.give_up_at
    others = [row(category=text, reply=text, envelope=text) for text in TEXTS]
    with transaction.atomic(), django_assert_num_queries(2 if way == "COPY" else 1) as seen:
        sql.insert_together([[one, *others]], "default")
    assert seen[-1]["sql"].startswith(way)
    for log, text in zip(others, TEXTS, strict=True):
        log.refresh_from_db()
        assert (log.category, log.reply, log.envelope) == (text, text, text)
    EmailLog.objects.bulk_create([two])
    columns = [field.attname for field in EmailLog._meta.concrete_fields if not field.primary_key]
    ours, djangos = (EmailLog.objects.values(*columns).get(pk=it.pk) for it in (one, two))
    assert ours == djangos


def test_inserted_rows_are_saved_ones_and_no_signal_is_sent() -> None:
    sent: list[object] = []

    def note(**given: Any) -> None:
        sent.append(given["instance"])

    for signal in (pre_save, post_save):
        signal.connect(note, sender=EmailLog)
    try:
        log = row()
        sql.insert_rows([log], "default")
    finally:
        for signal in (pre_save, post_save):
            signal.disconnect(note, sender=EmailLog)
    assert (log._state.adding, log._state.db, sent) == (False, "default", [])
    log.category = "order"
    log.save()
    assert EmailLog.objects.get().category == "order"


def test_expressions_are_computed_by_the_database() -> None:
    sql.insert_rows([row(created_at=clock.now(), due_at=clock.now(60))], "default")
    log = EmailLog.objects.get()
    assert isinstance(log.created_at, datetime)
    assert abs(log.due_at - log.created_at - timedelta(seconds=60)) < timedelta(seconds=5)


def test_the_database_assigns_automatic_keys(way) -> None:
    log = row()
    recipients = [EmailRecipient(email_id=log.pk, position=n, kind="to") for n in range(3)]
    sql.insert_together([[log], recipients], "default")
    assert EmailRecipient.objects.values("pk").distinct().count() == 3


def test_no_rows_need_no_statement(django_assert_num_queries) -> None:
    with django_assert_num_queries(0):
        sql.insert_rows([], "default")
        sql.insert_together([[], []], "default")


def attempts(log: EmailLog, *numbers: int) -> list[DeliveryAttempt]:
    values = {"transport": "smtp", "worker": "w", "created_at": clock.now()}
    return [DeliveryAttempt(email_id=log.pk, number=number, **values) for number in numbers]


def test_rows_that_conflict_are_skipped_only_on_request() -> None:
    log = row()
    log.save()
    sql.insert_rows(attempts(log, 1), "default")
    with pytest.raises(IntegrityError), transaction.atomic():
        sql.insert_rows(attempts(log, 1, 2), "default")
    sql.insert_rows(attempts(log, 1, 2), "default", ignore_conflicts=True)
    assert list(log.delivery_attempts.values_list("number", flat=True).order_by("number")) == [1, 2]


@pytest.mark.django_db(transaction=True)
def test_rows_of_several_models_are_inserted_all_or_none(way) -> None:
    log = row()
    log.save()
    with pytest.raises(DatabaseError):
        sql.insert_together([[row()], attempts(log, 1, 1)], "default")
    assert EmailLog.objects.get() == log
    assert not DeliveryAttempt.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_a_mail_in_one_statement_needs_no_transaction(django_assert_num_queries) -> None:
    transports.aliases()
    with django_assert_num_queries(1 if connection.vendor == "postgresql" else 5) as seen:
        log = outbox.enqueue(message(bcc=["b@example.com"]), transport="smtp", store_result=True)
    assert log.recipients.count() == 2
    assert log.pending_result.due_at - log.due_at < timedelta(seconds=5)
    if connection.vendor != "postgresql":
        assert seen[-1]["sql"] == "COMMIT"


def test_a_statement_is_no_longer_than_a_database_takes(
    monkeypatch, django_assert_num_queries
) -> None:
    monkeypatch.setattr(sql, "_MAX_STATEMENT_LENGTH", 1000)
    queries = 1 if connection.vendor == "postgresql" else 4
    with transaction.atomic(), django_assert_num_queries(queries) as seen:
        mails = [EmailMessage("S", "x" * 600, None, ["to@example.com"]) for _ in range(5)]
        assert EmailBackend(transport="smtp").send_messages(mails) == 5
    assert EmailLog.objects.count() == 5
    statements = sum(query["sql"].count("INSERT INTO") for query in seen)
    assert statements == 4  # two mails each, then one, and the recipients


def test_values_beyond_the_databases_limit_take_several_statements(monkeypatch) -> None:
    monkeypatch.setattr(type(connection.features), "max_query_params", 10)
    log = outbox.enqueue(message(), transport="smtp")
    assert log.recipients.count() == 1


@pytest.mark.django_db(transaction=True)
def test_columns_of_later_migrations_take_their_default(way) -> None:
    with isolate_apps("django_epica_mail"):

        class Later(models.Model):  # noqa: DJ008 - a table for columns with db_default
            id = models.UUIDField(primary_key=True)
            word = models.CharField(max_length=9, db_default="later")
            number = models.IntegerField(db_default=7, null=True)
            at = models.DateTimeField(db_default=Now())

            class Meta:
                app_label = "django_epica_mail"

    given, none = Later(id=uuid4(), word="given", number=1), Later(id=uuid4(), number=None)
    with connection.schema_editor() as editor:
        editor.create_model(Later)
    try:
        sql.insert_together([[given, none, Later(id=uuid4())]], "default")
        assert set(Later.objects.values_list("word", "number")) == {
            ("given", 1),
            ("later", None),
            ("later", 7),
        }
        assert not Later.objects.filter(at=None).exists()
    finally:
        with connection.schema_editor() as editor:
            editor.delete_model(Later)


def test_many_mails_are_copied_in_three_statements_and_the_database_sets_their_time(
    django_assert_num_queries,
) -> None:
    if sql._cursor_classes(connection.vendor)[1] is None:
        pytest.skip("only psycopg 3 has COPY")
    transports.aliases()
    mails = [message() for _ in range(sql._COPIED_ROWS // 2)]
    with transaction.atomic(), django_assert_num_queries(3) as seen:
        assert EmailBackend(transport="smtp").send_messages(mails) == len(mails)
    assert [query["sql"].split("(")[0].strip() for query in seen[1:]] == [
        'COPY "epica_mail_emaillog"',
        'COPY "epica_mail_emailrecipient"',
    ]
    log = EmailLog.objects.latest("created_at")
    assert log.due_at == log.created_at
    assert abs(log.created_at - timezone.now()) < timedelta(seconds=5)


def test_what_copy_refuses_is_djangos_error_and_rolled_back_to_a_savepoint(way) -> None:
    log = row()
    with pytest.raises(IntegrityError), transaction.atomic():
        sql.insert_together([[log, log]], "default")
    assert not EmailLog.objects.exists()


def test_a_wrapper_of_the_site_sees_every_statement(monkeypatch) -> None:
    monkeypatch.setattr(sql, "_COPIED_ROWS", 1)
    seen: list[str] = []

    def note(execute: Any, statement: str, *rest: Any) -> Any:
        seen.append(statement)
        return execute(statement, *rest)

    with connection.execute_wrapper(note):
        sql.insert_together([[row(), row()]], "default")
    assert [it for it in seen if it.startswith("INSERT")]
    assert EmailLog.objects.count() == 2


@pytest.mark.skipif("connection.vendor != 'postgresql'")
def test_rows_are_inserted_where_a_policy_forbids_copy(monkeypatch) -> None:
    monkeypatch.setattr(sql, "_COPIED_ROWS", 1)
    with connection.cursor() as cursor:
        cursor.execute("CREATE ROLE epica_mail_tenant")
        cursor.execute("GRANT ALL ON epica_mail_emaillog TO epica_mail_tenant")
        cursor.execute("ALTER TABLE epica_mail_emaillog ENABLE ROW LEVEL SECURITY")
        cursor.execute("CREATE POLICY own ON epica_mail_emaillog USING (queue = 'emails')")
        cursor.execute("SET LOCAL ROLE epica_mail_tenant")
        sql.insert_together([[row(), row()]], "default")
        with pytest.raises(DatabaseError, match="policy"), transaction.atomic():
            sql.insert_together([[row(queue="others")]], "default")
        cursor.execute("RESET ROLE")
    assert EmailLog.objects.count() == 2


def test_values_travel_beside_the_statement_unless_the_site_chose_a_cursor(monkeypatch) -> None:
    djangos, binding = sql._cursor_classes(connection.vendor)
    if binding is None:
        pytest.skip("only psycopg 3 has both kinds")
    driver = connection.connection

    def used() -> type:
        with sql._cursor(connection) as cursor:
            return type(cursor.cursor)

    assert used() is binding
    assert driver.cursor_factory is djangos
    with connection.cursor() as cursor:
        assert type(cursor.cursor) is djangos
    monkeypatch.setattr(driver, "prepare_threshold", 5)
    assert used() is djangos
    own = type("Own", (djangos,), {})
    monkeypatch.setattr(driver, "cursor_factory", own)
    assert used() is own
