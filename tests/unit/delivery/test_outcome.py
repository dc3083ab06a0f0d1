"""What the result of an attempt means for an e-mail's row."""

from __future__ import annotations

from typing import Any

import pytest
from django.core.mail import EmailMessage

from django_epica_mail import lifecycle
from django_epica_mail.delivery.batch import ClaimedMail
from django_epica_mail.delivery.outcome import Attempt, Envelope, Outcome, judge, policy_of
from django_epica_mail.models import EmailLog
from django_epica_mail.retry import Decision, Failure, Kind, Policy, Result

GREYLISTED = Failure(kind=Kind.TRANSIENT, code=451, reply="4.7.1 Greylisted")
NO_SUCH_USER = Failure(kind=Kind.PERMANENT, code=550, reply="5.1.1 No such user")
NOT_ALLOWED = Failure(kind=Kind.PERMANENT, reply="not allowed")
ACCEPTED = Result(code=250, seconds=0.1)


def row(**columns: Any) -> EmailLog:
    usual = {"max_retries": 3, "retry_delay": 300.0, "tries": 0, "on_unknown": "resend"}
    return EmailLog(**{**usual, **columns})


def attempt(envelope: Envelope, *, too_old: bool = False, **given: Any) -> Attempt:
    mail = ClaimedMail(given.pop("mail", row()), too_old=too_old, is_expired=False)
    options = {"was_accepted": False, "held_back": {}, **given}
    return Attempt(mail, EmailMessage(), envelope, **options)


def everyone(count: int) -> Envelope:
    positions = list(range(count))
    return Envelope(positions, positions)


def test_an_accepted_attempt_is_plain() -> None:
    outcome = judge(attempt(everyone(3)), ACCEPTED)
    assert outcome.decision.moves == (lifecycle.SUCCEED,)
    assert outcome.result == ACCEPTED
    assert outcome.is_plain
    assert not outcome.ends_batch


def test_refusals_are_numbered_among_all_recipients() -> None:
    envelope = Envelope(tried=[1, 3, 4], asked=[1, 3, 4])  # 0 and 2 were accepted before
    outcome = judge(attempt(envelope, was_accepted=True), Result(refused={1: NO_SUCH_USER}))
    assert outcome.decision.refused == {3: NO_SUCH_USER}
    assert outcome.result is not None
    assert outcome.result.refused == {3: NO_SUCH_USER}
    assert not outcome.is_plain


def test_recipients_that_are_not_allowed_are_refused_for_good() -> None:
    envelope = Envelope(tried=[0, 1, 2], asked=[1, 2], barred={0: NOT_ALLOWED})
    outcome = judge(attempt(envelope), Result(refused={1: GREYLISTED}))
    assert outcome.decision.moves == (lifecycle.POSTPONE,)
    assert outcome.decision.refused == {0: NOT_ALLOWED}
    assert outcome.decision.accepted == {1}, "2 is attempted again"


def test_refusals_of_redirect_addresses_mark_no_recipient() -> None:
    envelope = Envelope(tried=[0, 1], asked=[])
    outcome = judge(attempt(envelope), Result(refused={0: NO_SUCH_USER}))
    assert outcome.decision.moves == (lifecycle.SUCCEED,)
    assert outcome.decision.refused == {}


def test_refusal_of_the_rest_leaves_a_partly_accepted_mail_sent() -> None:
    result = Result(failure=NO_SUCH_USER, refused={0: NO_SUCH_USER})
    envelope = Envelope(tried=[1], asked=[1])
    outcome = judge(attempt(envelope, was_accepted=True), result)
    assert outcome.decision.moves == (lifecycle.SUCCEED,)
    assert outcome.decision.refused == {1: NO_SUCH_USER}
    outcome = judge(attempt(envelope, was_accepted=False), result)
    assert outcome.decision.moves == (lifecycle.GIVE_UP,)


def test_suppressed_recipients_are_part_of_the_outcome() -> None:
    outcome = judge(attempt(Envelope([1], [1]), held_back={0: "bounced for good"}), ACCEPTED)
    assert outcome.held_back == {0: "bounced for good"}
    assert not outcome.is_plain


def test_the_row_decides_how_a_failure_is_handled() -> None:
    failed = Result(failure=GREYLISTED)
    retried = judge(attempt(everyone(1), mail=row(tries=2)), failed)
    assert (retried.decision.moves, retried.decision.delay) == ((lifecycle.POSTPONE,), 300.0)
    used_up = judge(attempt(everyone(1), mail=row(tries=3)), failed)
    assert used_up.decision.moves == (lifecycle.GIVE_UP,)
    too_old = judge(attempt(everyone(1), too_old=True), failed)
    assert too_old.decision.moves == (lifecycle.GIVE_UP,)
    assert too_old.too_old


@pytest.mark.parametrize(
    ("keep", "result", "too_old", "ends"),
    [
        ("always", ACCEPTED, False, False),
        ("until_sent", ACCEPTED, False, True),
        ("until_sent", Result(failure=GREYLISTED), False, False),
        ("until_sent", Result(failure=GREYLISTED), True, True),
        ("until_sent", Result(failure=NO_SUCH_USER), False, True),
        ("never", Result(failure=NO_SUCH_USER), False, True),
    ],
)
def test_content_ends_with_a_final_status(keep, result, too_old, ends) -> None:
    mail = row(keep_content=keep)
    assert judge(attempt(everyone(1), mail=mail, too_old=too_old), result).ends_content is ends


def test_an_outcome_without_an_attempt_is_not_plain() -> None:
    assert not Outcome(row(), None, Decision(moves=(lifecycle.SUCCEED,))).is_plain


def test_an_envelope_is_empty_once_nobody_in_it_is_allowed() -> None:
    assert Envelope([0, 1], [], {0: NOT_ALLOWED, 1: NOT_ALLOWED}).is_empty
    assert not Envelope([0, 1], [1], {0: NOT_ALLOWED}).is_empty
    assert not Envelope([0, 1], []).is_empty, "redirected"


def test_the_policy_consists_of_the_rows_columns() -> None:
    mail = row(tries=2, max_retries=5, retry_delay=60.0, on_unknown="hold")
    expected = Policy(tries=2, max_retries=5, retry_delays=[60], on_unknown="hold", too_old=True)
    assert policy_of(mail, too_old=True) == expected
    mail.retry_delays = "60 300"
    assert policy_of(mail, too_old=False).retry_delays == [60, 300]
