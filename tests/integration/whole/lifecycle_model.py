"""Checks the queue's rows against what the server accepted and which statuses changed.

A trigger in the database records every change of a status, whatever code makes it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from uuid import UUID

from django.db import connection

from django_epica_mail import lifecycle
from django_epica_mail.lifecycle import Status
from django_epica_mail.models import DeliveryAttempt, EmailAttachment, EmailLog, EmailRecipient
from django_epica_mail.retry import ENDED_WORKER, LOST, Kind
from tests.integration.whole.workers import Dialogue, Worker, position_of

LEGAL = {(source, move.target) for move in lifecycle.MOVES for source in move.sources}

_NOTE = "INSERT INTO witness (email, old, new) VALUES (new.id, old.status, new.status);"
_SQLITE = (
    "CREATE TABLE witness (number integer PRIMARY KEY, email text, old text, new text)",
    "CREATE TRIGGER witness AFTER UPDATE OF status ON epica_mail_emaillog FOR EACH ROW "
    f"WHEN old.status <> new.status BEGIN {_NOTE} END",
)
_POSTGRESQL = (
    "CREATE TABLE witness (number serial PRIMARY KEY, email uuid, old text, new text)",
    "CREATE FUNCTION witness() RETURNS trigger LANGUAGE plpgsql AS "
    f"$$ BEGIN {_NOTE} RETURN new; END $$",
    "CREATE TRIGGER witness AFTER UPDATE OF status ON epica_mail_emaillog FOR EACH ROW "
    "WHEN (old.status <> new.status) EXECUTE FUNCTION witness()",
)
_MARIADB = (
    "CREATE TABLE witness (number integer PRIMARY KEY AUTO_INCREMENT, email uuid, "
    "old text, new text)",
    "CREATE TRIGGER witness AFTER UPDATE ON epica_mail_emaillog FOR EACH ROW "
    f"IF old.status <> new.status THEN {_NOTE} END IF",
)
_MAKE = {"sqlite": _SQLITE, "postgresql": _POSTGRESQL, "mysql": _MARIADB}
_DROP = {
    "sqlite": ("DROP TRIGGER witness", "DROP TABLE witness"),
    "postgresql": ("DROP FUNCTION witness CASCADE", "DROP TABLE witness"),
    "mysql": ("DROP TRIGGER witness", "DROP TABLE witness"),
}


@contextmanager
def witness() -> Iterator[None]:
    """Record every change of a status in the database."""
    with connection.cursor() as cursor:
        for statement in _MAKE[connection.vendor]:
            cursor.execute(statement)
        try:
            yield
        finally:
            for statement in _DROP[connection.vendor]:
                cursor.execute(statement)


def changes() -> list[tuple[UUID, str, str]]:
    """Return and delete the recorded changes: mail, old status, new status."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT email, old, new FROM witness ORDER BY number")
        noted = [(UUID(str(mail)), old, new) for mail, old, new in cursor.fetchall()]
        if noted:
            cursor.execute("DELETE FROM witness")
    return noted


class Model:
    """What the server was given and accepted, and how many copies of each mail are permitted.

    A mail gets another permission each time the policy resends it or a person requeues it. Under
    one permission, a recipient is sent the mail once.
    """

    def __init__(self) -> None:
        self.accepted: set[tuple[UUID, int]] = set()
        self.permissions = Counter[UUID]()
        self.extra_tries = Counter[UUID]()
        self.resent = Counter[UUID]()
        self.late = defaultdict[UUID, set[UUID]](set)
        self.with_file: set[UUID] = set()
        """The mails that share an attachment with others."""
        self.erased: set[tuple[UUID, int]] = set()
        self.reported: set[UUID] = set()
        """The mails of which a provider reported that a recipient got them."""
        self.confirmed: set[UUID] = set()
        """The mails that had failed or were cancelled before they were known to be accepted."""
        self.overtaken: set[UUID] = set()
        """The claims during which the clock jumped, so that their leases may have ended early."""
        self._granted: dict[UUID, Counter[UUID]] = {}
        self._lost_late: set[UUID] = set()
        """The mails of workers that were taken for dead, and then said that the reply was lost: no
        poison, so the policy may resend them."""
        self._noted: set[tuple[UUID, int]] = set()
        self._taken: set[tuple[UUID, int, int]] = set()
        self._handed: dict[Worker, dict[int, tuple[UUID, int, int]]] = {}

    def note(self, noted: Iterable[tuple[UUID, str, str]], *, by: str = "") -> None:
        """Check changes of status; a ``person`` or a ``retry`` may requeue final mail.

        An ``answer`` that comes after the lease ended may still confirm a mail, or show that it was
        not accepted. So may a provider's report (``reported``), and not only when it comes: a mail
        that fails later, because its worker is lost, is confirmed by what was reported before.
        """
        for mail, old, new in noted:
            assert (old, new) in LEGAL
            assert old != Status.SENT
            told = by == "answer" or mail in self.reported
            if told and old in (Status.FAILED, Status.CANCELLED) and new == Status.SENT:
                assert any(pk == mail for pk, _ in self.accepted)
                self.confirmed.add(mail)
                continue
            if mail in self.reported and (old, new) == (Status.FAILED, Status.QUEUED) and not by:
                self.extra_tries[mail] += 1  # for those who were refused for now
                continue
            assert by in ("person", "retry") or old not in lifecycle.FINAL
            if by == "person":
                self.permissions[mail] += 1
                self.extra_tries[mail] = self.resent[mail] = 0
            elif by == "retry":
                assert (old, new) == (Status.FAILED, Status.QUEUED)
                self.extra_tries[mail] += 1
            elif (old, new) == (Status.UNKNOWN, Status.RETRYING):
                if (mail, Status.SENDING, Status.UNKNOWN) not in noted:
                    assert told, "only an answer or a report frees a mail that is held"
                    if mail not in self._lost_late:
                        continue
                self.permissions[mail] += 1
                self.resent[mail] += 1

    def note_resent(self, noted: Iterable[tuple[UUID, str, str]]) -> None:
        """Check that a person has had mail of unknown outcome sent once more, beyond its tries."""
        for mail, old, new in noted:
            assert (old, new) == (Status.UNKNOWN, Status.RETRYING)
            self.permissions[mail] += 1
            self.extra_tries[mail] += 1

    def hand_over(self, worker: Worker, dialogue: Dialogue, begun_by: datetime) -> None:
        """Check that a mail may be sent now, given its lease, times and earlier attempts."""
        assert not connection.in_atomic_block
        assert worker.batch is not None
        assert worker.batch.token is not None
        assert dialogue.positions
        assert dialogue.has_file == (dialogue.mail in self.with_file)
        granted = self._granted.setdefault(worker.batch.token, self.permissions.copy())
        if worker.batch.token not in self.overtaken:
            self._check_handed_over(worker, dialogue, begun_by)
        keys = {p: (dialogue.mail, p, granted[dialogue.mail]) for p in dialogue.positions}
        assert not self._taken.intersection(keys.values()), "sent again without permission"
        self._taken.update(keys.values())
        self._handed[worker] = keys

    def _check_handed_over(self, worker: Worker, dialogue: Dialogue, begun_by: datetime) -> None:
        assert worker.batch is not None
        log = EmailLog.objects.get(pk=dialogue.mail)
        assert (log.status, log.lease_token) == (Status.SENDING, worker.batch.token)
        assert log.lease_until is not None
        assert log.lease_until > begun_by, "the lease may end before the dialogue"
        assert log.due_at < worker.batch_sought_at
        assert log.expires_at is None or log.expires_at > worker.batch_sought_at
        done = log.recipients.exclude(outcome="").values_list("address", flat=True)
        positions = {(log.pk, position) for position in dialogue.positions}
        assert positions.isdisjoint((log.pk, position_of(it)) for it in done), "has an outcome"
        assert positions.isdisjoint(self._noted)
        assert positions.isdisjoint(self.erased), "sent to a person who was erased"
        worker.holds_until = log.lease_until

    def answer(
        self,
        worker: Worker,
        taken: set[int],
        *,
        in_doubt: bool,
        refused: Iterable[int] = (),
        late: bool = False,
    ) -> None:
        """Record the accepted recipients; unless in doubt, the others may be attempted again.

        Those ``refused`` may be in any case.

        ``late`` is a reply to a worker whose lease may have ended.
        """
        keys = self._handed.pop(worker)
        if in_doubt and late:
            self._lost_late |= {mail for mail, *_ in keys.values()}
        self.accepted |= {keys[position][:2] for position in taken}
        surely_not = set(refused) if in_doubt else keys.keys() - taken
        self._taken -= {keys[position] for position in surely_not}
        if late and worker.batch is not None:
            for mail in worker.batch.mails:
                self.late[mail.row.pk].add(worker.batch.token)

    def check_claims(self, present: datetime) -> None:
        """Check that no mail is taken from a worker whose lease has not ended."""
        for worker, keys in self._handed.items():
            assert worker.batch is not None
            if worker.batch.token in self.overtaken:
                continue
            held = [mail.row.pk for mail in worker.batch.mails]
            (mail,) = {mail for mail, *_ in keys.values()}
            mine = held[held.index(mail) :]
            logs = EmailLog.objects.filter(pk__in=mine, lease_token=worker.batch.token)
            if worker.holds_until > present:
                assert logs.filter(status=Status.SENDING).count() == len(mine)

    def check_rows(self) -> None:
        """Check that every row is consistent, and matches what the server accepted."""
        numbers, outcomes = defaultdict[UUID, list[int]](list), defaultdict[UUID, dict](dict)
        attempts = DeliveryAttempt.objects.order_by("number")
        for mail, number in attempts.values_list("email_id", "number"):
            numbers[mail].append(number)
        for row in EmailRecipient.objects.only("email_id", "address", "outcome"):
            outcomes[row.email_id][position_of(row.address)] = row.outcome
        for log in EmailLog.objects.defer("envelope"):
            claimable = log.status in lifecycle.CLAIMABLE
            assert log.pending == (log.priority if claimable else None)
            assert (log.lease_until is not None) == (log.status == Status.SENDING)
            assert (log.finished_at is not None) == (log.status in lifecycle.FINAL)
            # A late result counts an attempt that the rescue has already counted.
            late = log.attempts - len(numbers[log.pk])
            assert 0 <= late <= len(self.late[log.pk])
            assert not numbers[log.pk] or max(numbers[log.pk]) <= log.attempts
            allowed = log.max_retries + self.extra_tries[log.pk]
            assert log.tries <= allowed + 1 + late
            assert self.resent[log.pk] <= allowed
            self._check_outcomes(log, outcomes[log.pk])

    def check_content(self) -> None:
        """Check that attachments exist as long as a mail has its content, and no longer."""
        links = EmailLog.attachments.through._default_manager
        attached = set(links.values_list("emaillog_id", flat=True))
        whole = set(EmailLog.objects.exclude(envelope="").values_list("pk", flat=True))
        assert attached == whole & self.with_file
        assert not EmailAttachment.objects.filter(emails__isnull=True).exists()

    def _check_outcomes(self, log: EmailLog, outcomes: dict[int, str]) -> None:
        noted = {position for position, outcome in outcomes.items() if outcome == "accepted"}
        refused = {position for position, outcome in outcomes.items() if outcome == "refused"}
        accepted = {position for pk, position in self.accepted if pk == log.pk}
        assert noted <= accepted
        self._noted |= {(log.pk, position) for position in noted}
        if log.status == Status.SENT:
            assert accepted, "sent, but never accepted by the server"
            left_out = outcomes.keys() - accepted - refused
            assert not left_out or self._is_guess(log), "sent, but a recipient was left out"
        if log.status == Status.FAILED and log.failure_kind != Kind.OVERDUE:
            assert not noted

    def _is_guess(self, log: EmailLog) -> bool:
        """Return whether nobody can know which of several recipients accepted a mail.

        What a worker that died knew is lost; and of several attempts in doubt, nobody knows which
        one a report is about. A mail that failed is not tried again, so all of them are counted
        with the one who is known to have got it.
        """
        lost = log.delivery_attempts.filter(failure_kind__in=LOST)
        kinds = list(lost.values_list("failure_kind", flat=True))
        is_known = len(kinds) == 1 and kinds[0] not in ENDED_WORKER
        return log.pk in self.confirmed and not is_known
