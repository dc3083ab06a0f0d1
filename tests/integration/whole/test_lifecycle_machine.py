"""E-mails under random sequences of events, checked against a model of the server."""

from __future__ import annotations

import itertools
import os
import sys
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import django
import pytest
from django.apps import apps
from django.core.mail import EmailMessage
from django.db import DEFAULT_DB_ALIAS, connection, connections
from django.db.models import Q
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from django_epica_mail import clock, lifecycle, maintenance, outbox, retry
from django_epica_mail.delivery import claim, db_retry, gates, settle
from django_epica_mail.delivery import worker as delivery_worker
from django_epica_mail.delivery.limits import scan_starts, slowed_domains
from django_epica_mail.lifecycle import Status
from django_epica_mail.models import (
    EmailAttachment,
    EmailBatch,
    EmailEvent,
    EmailLog,
    EmailRecipient,
)
from django_epica_mail.privacy.erase import erase
from django_epica_mail.privacy.person import Person
from django_epica_mail.retry import Failure, Kind, Result
from django_epica_mail.tracking import events
from django_epica_mail.transports import connection as transport_connection
from tests.integration.whole import workers
from tests.integration.whole.lifecycle_model import Model, changes, witness
from tests.integration.whole.workers import Time, Worker, address_of

# More of them for longer: each takes up to a second.
EXAMPLES = int(os.environ.get("EPICA_MACHINE_EXAMPLES", "15"))
QUEUES, TRANSPORTS = ("emails", "emails", "reports"), ("ses", "smtp")
"""The queue of each worker, and the transports."""
BATCH_SIZE = 2
SEND_TIMEOUT = 60
LEASE = 4 + SEND_TIMEOUT
EPICA_MAIL = {
    "BATCH_SIZE": BATCH_SIZE,
    "SEND_TIMEOUT": SEND_TIMEOUT,
    "MAX_RETRIES": 1,
    "RETRY_DELAY": 300,
    "GIVE_UP_AFTER": 3600,
    "RUN_SECONDS": 1e6,
}


@dataclass(frozen=True)
class Order:
    """Some identical mails."""

    count: int
    recipients: int
    priority: int
    transport: str
    on_unknown: str
    wait: float
    """Seconds until they are due."""
    life: float
    """Seconds until they expire, or 0 for never."""
    queue: str
    keep_content: str
    share_file: bool
    """Whether they share an attachment."""


orders = st.builds(
    Order,
    count=st.integers(1, 3),
    recipients=st.integers(1, 3),
    priority=st.sampled_from([9, 9, 0]),
    transport=st.sampled_from(TRANSPORTS),
    on_unknown=st.sampled_from(["resend", "resend", "hold", "fail"]),
    wait=st.sampled_from([0, 0, 0, 60]),
    life=st.sampled_from([0, 0, 0, 500]),
    queue=st.sampled_from(QUEUES),
    keep_content=st.sampled_from(["always", "always", "until_sent"]),
    share_file=st.booleans(),
)
which = st.integers(0, len(QUEUES) - 1)
refusals = st.dictionaries(
    st.integers(0, 2),
    st.sampled_from([Kind.PERMANENT, Kind.TRANSIENT, Kind.THROTTLED]),
    max_size=2,
)


def movable(move: lifecycle.Move) -> st.SearchStrategy[Status]:
    """Return the source statuses of a move, in a stable order."""
    return st.sampled_from(sorted(move.sources))


class Lifecycle(RuleBasedStateMachine):
    """Drives two queues with three workers, and checks the invariants after each step.

    Hypothesis disables some rules in each run, so no rule depends on another: a rule that needs a
    worker starts one.
    """

    mails = Bundle("mails")

    def __init__(self, time: Time) -> None:
        super().__init__()
        self.time, self.model = time, Model()
        self.workers: dict[int, Worker] = {}
        self.numbers = itertools.count()

    # Users and operators

    @initialize(target=mails, orders=st.lists(orders, min_size=1, max_size=3))
    def begin(self, orders: list[Order]) -> MultipleResults[UUID]:
        return multiple(*(pk for order in orders for pk in self._enqueue(order)))

    @rule(target=mails, order=orders)
    def enqueue(self, order: Order) -> MultipleResults[UUID]:
        return multiple(*self._enqueue(order))

    @rule(mail=mails, status=movable(lifecycle.CANCEL), regret=st.booleans())
    def cancel(self, mail: UUID, status: Status, regret: bool) -> None:
        before = self._statuses(mail, status)
        done = outbox.cancel(before)
        assert done.cancelled == [pk for pk in before if before[pk] in lifecycle.CANCEL.sources]
        assert {*done.cancelled, *done.too_late} == before.keys()
        if regret:
            self.requeue(mail, Status.CANCELLED)

    @rule(mail=mails, status=movable(lifecycle.REQUEUE))
    def requeue(self, mail: UUID, status: Status) -> None:
        self.model.note(changes())
        before = self._statuses(mail, status)
        readable = set(EmailLog.objects.exclude(envelope="").values_list("pk", flat=True))
        moved = [pk for pk in before.keys() & readable if before[pk] in lifecycle.REQUEUE.sources]
        assert outbox.requeue(before) == len(moved)
        self.model.note(changes(), by="person")

    @rule(mail=mails, verdict=st.sampled_from([outbox.Verdict.RESEND, outbox.Verdict.WRITE_OFF]))
    def decide(self, mail: UUID, verdict: outbox.Verdict) -> None:
        self.model.note(changes())
        before = self._statuses(mail, Status.UNKNOWN)
        unknown = [pk for pk in before if before[pk] == Status.UNKNOWN]
        assert outbox.decide(before, verdict) == len(unknown)
        if verdict is outbox.Verdict.RESEND:
            self.model.note_resent(changes())

    @rule(mail=mails, which=st.integers(0, 2))
    def erase(self, mail: UUID, which: int) -> None:
        recipients = EmailRecipient.objects.filter(email=mail).order_by("position")
        addresses = recipients.values_list("address", flat=True)[which : which + 1]
        for address in addresses:
            done = erase(Person(address))
            self.model.note(changes())
            left = EmailRecipient.objects.filter(email=mail, address=address).exists()
            assert left == (str(mail) in done["left"])
            if not left:
                self.model.erased.add((mail, workers.position_of(address)))

    @rule(number=st.integers(0, 9))
    def report_delivery(self, number: int) -> None:
        """Let a provider report, now or again, that a recipient of some try got the mail."""
        recipients = EmailRecipient.objects.order_by("email_id", "position")
        accepted = [
            (mail, address)
            for mail, address in recipients.values_list("email_id", "address")
            if (mail, workers.position_of(address)) in self.model.accepted
        ]
        if accepted:
            self._report_delivery(*accepted[number % len(accepted)])

    def _report_delivery(self, mail: UUID, address: str) -> None:
        present = self.time.present()
        event = EmailEvent(
            kind=EmailEvent.Kind.DELIVERED,
            email_id=mail,
            address=address,
            key=str(next(self.numbers)),
            at=present,
            created_at=present,
        )
        self.model.reported.add(mail)
        assert events.record(event)
        self.model.note(changes())

    @rule(
        what=st.sampled_from([{"queue": QUEUES[0]}, *({"transport": name} for name in TRANSPORTS)]),
        change=st.sampled_from([outbox.resume, outbox.resume, outbox.pause]),
    )
    def pause_or_resume(self, what: dict[str, str], change: Callable[..., None]) -> None:
        change(**what)

    # Workers and the server

    @rule(which=which, times=st.integers(1, 4))
    def accept(self, which: int, times: int) -> None:
        for _ in range(times):
            if worker := self._worker_in_dialogue(which):
                self._answer(worker, Result(code=250, seconds=0.1))

    @rule(which=which, refused=refusals)
    def refuse_some(self, which: int, refused: dict[int, Kind]) -> None:
        if worker := self._worker_in_dialogue(which):
            count = len(worker.positions)
            failures = {n: Failure(kind=kind) for n, kind in refused.items() if n < count}
            failure = retry.mildest(failures.values()) if len(failures) == count else None
            self._answer(worker, Result(failure=failure, refused=failures, seconds=0.1))

    @rule(
        which=which,
        kind=st.sampled_from([Kind.PERMANENT, Kind.TRANSIENT, Kind.THROTTLED, Kind.OUTAGE]),
    )
    def refuse_all(self, which: int, kind: Kind) -> None:
        if worker := self._worker_in_dialogue(which):
            self._answer(worker, Result(failure=Failure(kind=kind), seconds=0.1))

    @rule(which=which, was_accepted=st.booleans(), refused=refusals)
    def lose_the_reply(self, which: int, was_accepted: bool, refused: dict[int, Kind]) -> None:
        if worker := self._worker_in_dialogue(which):
            most = len(worker.positions) - 1  # without one the content would not have been sent
            failures = {n: Failure(kind=kind) for n, kind in refused.items() if n < most}
            lost = Failure(kind=Kind.UNKNOWN)
            result = Result(failure=lost, refused=failures, seconds=0.1)
            self._answer(worker, result, was_accepted=was_accepted)

    @rule(which=which, was_accepted=st.booleans())
    def kill(self, which: int, was_accepted: bool) -> None:
        self._worker_in_dialogue(which)
        if worker := self.workers.pop(which, None):
            if worker.dialogue is not None:
                taken = set(worker.positions) if was_accepted else set()
                self.model.answer(worker, taken, in_doubt=True)
            worker.kill()

    # Time and periodic work

    @rule(seconds=st.sampled_from([3, 31, 61, 301, 3601]))
    def let_time_pass(self, seconds: float) -> None:
        self.time.sleep(seconds)

    @rule(seconds=st.sampled_from([-130, -3, 130]))
    def step_the_clock(self, seconds: float) -> None:
        """Step the clock of the database, while the workers' monotonic one goes on."""
        self.time.jump(seconds)
        batches = [worker.batch for worker in self.workers.values()]
        self.model.overtaken |= {it.token for it in batches if it is not None and it.token}

    @rule(which=which)
    def stall(self, which: int) -> None:
        """End the lease of a worker that waits for a reply, and start another worker."""
        self._worker_in_dialogue(which)
        self.time.sleep(LEASE)
        self.rescue()
        self._worker_in_dialogue((1, 0, 1)[which])

    @rule()
    def rescue(self) -> None:
        sending = EmailLog.objects.filter(status=Status.SENDING)
        claims = dict(sending.values_list("pk", "lease_token"))
        count = maintenance.rescue()
        noted = changes()
        self.model.note(noted)
        assert count == len({mail for mail, *_ in noted})
        lost = Counter(claims[mail] for mail, _, new in noted if new == Status.UNKNOWN)
        assert all(count <= BATCH_SIZE for count in lost.values()), "more than may have been begun"

    @rule(clean_up=st.booleans())
    def take_care(self, clean_up: bool) -> None:
        maintenance.dispatch()
        self.model.note(changes())
        count = maintenance.retry_failed()
        noted = changes()
        self.model.note(noted, by="retry")
        assert count == len(noted)
        if clean_up:
            self._clean_up()

    def _clean_up(self) -> None:
        self.time.sleep(24 * 3600)
        before = dict(EmailLog.objects.values_list("pk", "status"))
        count = maintenance.cleanup(days=1)
        gone = before.keys() - set(EmailLog.objects.values_list("pk", flat=True))
        assert len(gone) == count
        assert {before[mail] for mail in gone} <= lifecycle.FINAL

    # Invariants

    @invariant()
    def rows_are_consistent(self) -> None:
        self.model.note(changes())
        self.model.check_claims(self.time.present())
        self.model.check_rows()
        self.model.check_content()

    def teardown(self) -> None:
        """Check that all mail is finished once nothing fails any more; delete all rows."""
        try:
            if sys.exc_info()[0] is None:
                self._finish()
        finally:
            for worker in self.workers.values():
                worker.kill()
            _empty_tables()

    def _finish(self) -> None:
        for which in list(self.workers):
            self.kill(which, was_accepted=False)
        outbox.resume(queue=QUEUES[0])
        for alias in TRANSPORTS:
            outbox.resume(transport=alias)
        for _ in range(10):
            self.time.sleep(400)
            maintenance.dispatch()
            for which in (0, 2):
                self._worker_in_dialogue(which)
                while self.workers:
                    self.accept(which, times=1)
            self.rows_are_consistent()
            left = EmailLog.objects.exclude(status__in=lifecycle.FINAL)
            held = Q(on_unknown="hold") | Q(failure_kind=Kind.POISON)
            if left.count() == left.filter(held, status=Status.UNKNOWN).count():
                return
        pytest.fail(f"Mail is stuck: {list(left.values())}")

    # Helpers

    def _enqueue(self, order: Order) -> list[UUID]:
        now = self.time.present()
        messages = [
            EmailMessage("Subject", "Body", None, self._addresses(order.recipients))
            for _ in range(order.count)
        ]
        options: dict[str, Any] = {
            "queue": order.queue,
            "priority": order.priority,
            "transport": order.transport,
            "on_unknown": order.on_unknown,
            "keep_content": order.keep_content,
            "send_at": now + timedelta(seconds=order.wait) if order.wait else None,
            "expires_at": now + timedelta(seconds=order.life) if order.life else None,
        }
        if not order.share_file:
            return [outbox.enqueue(message, **options).pk for message in messages]
        content = str(next(self.numbers)).encode()
        for message in messages:
            message.attach("file.bin", content, "application/octet-stream")
        batch = outbox.enqueue_many(messages, **options)
        ids = list(EmailLog.objects.filter(batch=batch).order_by("pk").values_list("pk", flat=True))
        self.model.with_file |= set(ids)
        return ids

    def _addresses(self, count: int) -> list[str]:
        number = next(self.numbers)
        return [address_of(number, position) for position in range(count)]

    def _statuses(self, mail: UUID, status: Status) -> dict[UUID, str | None]:
        """Return the statuses of a mail and of the first mail with ``status``."""
        first = EmailLog.objects.filter(status=status).order_by("pk")[:1]
        rows = EmailLog.objects.filter(Q(pk=mail) | Q(pk__in=[log.pk for log in first]))
        return {mail: None, **dict(rows.values_list("pk", "status"))}

    def _worker_in_dialogue(self, which: int) -> Worker | None:
        """Return a worker that waits for a reply, after starting or continuing it as needed."""
        worker = self.workers.get(which)
        if worker is None:
            self.workers[which] = Worker(connections[DEFAULT_DB_ALIAS], QUEUES[which], self.time)
        if worker is None or worker.dialogue is None:
            self._go_on(self.workers[which])
        worker = self.workers.get(which)
        return worker if worker is not None and worker.dialogue is not None else None

    def _answer(self, worker: Worker, answer: Result, *, was_accepted: bool | None = None) -> None:
        in_doubt = was_accepted is not None
        if was_accepted if in_doubt else answer.failure is None:
            taken = {p for n, p in enumerate(worker.positions) if n not in answer.refused}
        else:
            taken = set()
        refused = [worker.positions[n] for n in answer.refused]
        overtaken = worker.batch is not None and worker.batch.token in self.model.overtaken
        late = overtaken or worker.holds_until <= self.time.present()
        self.model.answer(worker, taken, in_doubt=in_doubt, refused=refused, late=late)
        self._go_on(worker, answer)

    def _go_on(self, worker: Worker, answer: Result | None = None) -> None:
        worker.go_on(answer)
        self.model.note(changes(), by="answer" if answer is not None else "")
        if worker.is_over:
            self.workers = {n: other for n, other in self.workers.items() if other is not worker}
        elif worker.dialogue is not None:
            surely_done_by = self.time.present(timedelta(seconds=SEND_TIMEOUT))
            self.model.hand_over(worker, worker.dialogue, surely_done_by)


def _empty_tables() -> None:
    with connection.cursor() as cursor:
        for table in ("witness", *_tables()):
            cursor.execute(f"DELETE FROM {table}")


def _tables() -> list[str]:
    """Return the package's tables, referring tables first."""
    models = apps.get_app_config("epica_mail").get_models(include_auto_created=True)
    last = [model._meta.db_table for model in (EmailAttachment, EmailLog, EmailBatch)]
    return [*({model._meta.db_table for model in models} - {*last}), *last]


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    """Give rows and workers one clock that only the test moves."""
    time = Time()
    monkeypatch.setattr(clock, "now", time.now)
    for module in (claim, slowed_domains, delivery_worker, gates, settle, db_retry):
        monkeypatch.setattr(
            module, "time", SimpleNamespace(monotonic=time.monotonic, sleep=time.sleep)
        )
    return time


@pytest.fixture
def site(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Configure two transports, small limits, and workers that stop at each dialogue."""
    spec = {"BACKEND": "django.core.mail.backends.smtp.EmailBackend"}
    transports = dict.fromkeys(TRANSPORTS, spec)
    if django.VERSION >= (6, 1):
        settings.MAILERS = transports
        settings.EPICA_MAIL = EPICA_MAIL
    else:
        settings.EPICA_MAIL = {**EPICA_MAIL, "TRANSPORTS": transports}
    monkeypatch.setattr(transport_connection, "connection", workers.connection)
    monkeypatch.setattr(claim, "batch_of", workers.batch)
    # It moves no mail, and counts each of the many hours that pass here.
    monkeypatch.setattr(maintenance.totals, "count", lambda: None)


@pytest.mark.django_db(transaction=True)
def test_no_order_of_events_loses_or_duplicates_a_mail(
    site: None, time: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start() -> Lifecycle:
        # A failing run must be repeatable: rows are sorted by their ids, claims by their tokens.
        time.reset()
        gates.forget()
        slowed_domains.forget()
        scan_starts.forget()
        numbers = itertools.count()
        monkeypatch.setattr(uuid, "uuid4", lambda: UUID(int=next(numbers), version=4))
        nanoseconds = SimpleNamespace(time_ns=lambda: 10**18 + next(numbers) * 10**6)
        monkeypatch.setattr(clock, "time", nanoseconds)
        monkeypatch.setattr(clock, "os", SimpleNamespace(urandom=bytes))
        return Lifecycle(time)

    connection.inc_thread_sharing()
    try:
        with witness():
            run_state_machine_as_test(
                start,
                settings=hypothesis_settings(
                    max_examples=EXAMPLES, stateful_step_count=40, deadline=None, print_blob=True
                ),
            )
    finally:
        connection.dec_thread_sharing()
