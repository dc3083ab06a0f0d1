"""What follows from an attempt and its failures."""

from __future__ import annotations

import pytest

from django_epica_mail import lifecycle, retry
from django_epica_mail.lifecycle import Status
from django_epica_mail.retry import Decision, Failure, Kind, Policy, Result, Scope


def policy(**fields) -> Policy:
    defaults = {
        "tries": 0,
        "max_retries": 3,
        "retry_delays": [300.0],
        "on_unknown": "resend",
        "too_old": False,
    }
    return Policy(**{**defaults, **fields})


def test_a_confirmed_outage_uses_no_try_and_lets_another_mail_probe() -> None:
    doubtful = Failure(kind=Kind.TRANSIENT, scope=Scope.SERVER)
    decision = retry.conclude(Result(failure=doubtful.confirmed()), policy(), [0], False)
    assert (decision.uses_try, decision.delay) == (False, 300)
    unknown = Failure(kind=Kind.UNKNOWN, scope=Scope.SERVER).confirmed()
    assert (unknown.kind, unknown.stops_transport) == (Kind.UNKNOWN, True)


def decide(kind: Kind, **fields) -> Decision:
    return retry.conclude(Result(failure=Failure(kind=kind)), policy(**fields), [0], False)


@pytest.mark.parametrize(
    ("kind", "fields", "end", "delay", "uses_try"),
    [
        (Kind.TRANSIENT, {}, Status.RETRYING, 300, True),
        (Kind.TRANSIENT, {"tries": 3}, Status.FAILED, 0, True),
        (Kind.TRANSIENT, {"too_old": True}, Status.FAILED, 0, True),
        (Kind.PERMANENT, {}, Status.FAILED, 0, False),
        (Kind.MESSAGE, {}, Status.FAILED, 0, False),
        (Kind.OUTAGE, {"tries": 99}, Status.RETRYING, 0, False),
        (Kind.OUTAGE, {"too_old": True}, Status.FAILED, 0, False),
        (Kind.THROTTLED, {"tries": 99}, Status.RETRYING, 60, False),
        (Kind.UNKNOWN, {}, Status.RETRYING, 300, True),
        (Kind.UNKNOWN, {"tries": 3}, Status.FAILED, 0, True),
        (Kind.UNKNOWN, {"on_unknown": "hold"}, Status.UNKNOWN, 0, True),
        (Kind.UNKNOWN, {"on_unknown": "fail"}, Status.FAILED, 0, True),
        (Kind.WORKER_LOST, {}, Status.RETRYING, 0, True),
        (Kind.POISON, {}, Status.UNKNOWN, 0, True),
        (Kind.POISON, {"tries": 3}, Status.UNKNOWN, 0, True),
        (Kind.POISON, {"on_unknown": "hold"}, Status.UNKNOWN, 0, True),
        (Kind.POISON, {"on_unknown": "fail"}, Status.FAILED, 0, True),
    ],
)
def test_a_failure_decides_status_delay_and_budget(kind, fields, end, delay, uses_try) -> None:
    decision = decide(kind, **fields)
    assert decision.moves[-1].target is end
    assert (decision.delay, decision.uses_try) == (delay, uses_try)


@pytest.mark.parametrize("policy_name", ["resend", "hold", "fail"])
@pytest.mark.parametrize(("kind", "delay"), [(Kind.UNKNOWN, 300.0), (Kind.WORKER_LOST, 0.0)])
def test_a_mail_that_awaits_evidence_stays_unknown(policy_name, kind, delay) -> None:
    decision = decide(kind, on_unknown=policy_name, awaits_evidence=True, retry_delays=(300.0,))
    assert (decision.moves, decision.delay) == ((lifecycle.LOSE,), delay)


@pytest.mark.parametrize("on_unknown", ["resend", "hold", "fail"])
@pytest.mark.parametrize("is_patient", [False, True])
def test_a_mail_is_only_sent_again_if_that_is_safe_or_its_policy(on_unknown, is_patient) -> None:
    def resolve(evidence: str, *, is_over: bool) -> str:
        move = retry.resolve(
            retry.Evidence(evidence), on_unknown, is_over=is_over, is_patient=is_patient
        )
        return move.name if move else ""

    assert resolve("accepted", is_over=False) == resolve("accepted", is_over=True) == "succeed"
    assert resolve("refused", is_over=False) == "resend"
    assert resolve("refused", is_over=True) == "write off"
    waits = on_unknown == "hold" or is_patient
    ends = {"resend": "resend", "fail": "write off"}.get(on_unknown, "")
    assert resolve("unknown", is_over=False) == ("" if waits else ends)
    assert resolve("unknown", is_over=True) == ("" if waits else "write off")


@pytest.mark.parametrize(("asked", "delay"), [(-1.0, 5.0), (0.0, 5.0), (5.5, 5.5), (600.0, 600.0)])
def test_a_mail_waits_some_seconds_however_soon_the_server_wants_it(asked, delay) -> None:
    failure = Failure(kind=Kind.THROTTLED, code=429, retry_after=asked)
    assert retry.conclude(Result(failure=failure), policy(), [0], False).delay == delay


def test_an_unknown_outcome_always_passes_through_that_status() -> None:
    for on_unknown in ("resend", "hold", "fail"):
        assert decide(Kind.UNKNOWN, on_unknown=on_unknown).moves[0] is lifecycle.LOSE


def test_a_mail_accepted_before_is_sent_if_the_rest_fails() -> None:
    result = Result(failure=Failure(kind=Kind.PERMANENT, code=554))
    decision = retry.conclude(result, policy(), [1], accepted_before=True)
    assert decision.moves == (lifecycle.SUCCEED,)
    assert set(decision.refused) == {1}


def test_refusals_are_numbered_among_all_recipients() -> None:
    result = Result(refused={0: Failure(kind=Kind.PERMANENT)})
    assert set(retry.at_positions(result, [4, 7]).refused) == {4}


@pytest.mark.parametrize(("tries", "delay"), [(0, 60), (1, 300), (2, 1800), (3, 1800), (99, 1800)])
def test_each_retry_has_its_own_delay_and_the_last_one_repeats(tries: int, delay: float) -> None:
    delays = [60.0, 300.0, 1800.0]
    decision = decide(Kind.TRANSIENT, retry_delays=delays, tries=tries, max_retries=100)
    assert decision.delay == delay


def test_a_delay_is_lengthened_at_random_and_never_shortened() -> None:
    found = [retry.jittered(300) for _ in range(200)]
    assert min(found) >= 300
    assert max(found) <= 330
    assert max(found) - min(found) > 10
    assert retry.jittered(0) == 0
