"""Properties of retry decisions, whatever a server does: bounded, legal and monotonic."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from django_epica_mail import lifecycle, retry
from django_epica_mail.lifecycle import Status
from django_epica_mail.retry import Decision, Failure, Kind, Policy, Result

RECIPIENTS = range(4)
ENDLESS = {Kind.OUTAGE, Kind.THROTTLED}
FOR_GOOD = {Kind.PERMANENT, Kind.MESSAGE, Kind.OVERDUE}
IN_DOUBT = {Kind.UNKNOWN, Kind.WORKER_LOST, Kind.POISON}

refusals = st.builds(
    Failure,
    kind=st.sampled_from([Kind.PERMANENT, Kind.TRANSIENT, Kind.THROTTLED, Kind.OUTAGE]),
    code=st.none() | st.integers(400, 599),
)
# Each of these ends the mail or uses up a try, so no mail is retried forever.
counted_refusals = st.builds(Failure, kind=st.sampled_from([Kind.PERMANENT, Kind.TRANSIENT]))
counted_failures = st.builds(
    Failure, kind=st.sampled_from([Kind.TRANSIENT, Kind.UNKNOWN, Kind.WORKER_LOST])
)
failures = st.builds(Failure, kind=st.sampled_from(Kind), code=st.none() | st.integers(400, 599))
policies = st.builds(
    Policy,
    tries=st.integers(0, 9),
    max_retries=st.integers(0, 9),
    retry_delays=st.lists(st.floats(0, 1e6), min_size=1, max_size=9),
    on_unknown=st.sampled_from(["resend", "hold", "fail"]),
    too_old=st.booleans(),
)


@st.composite
def results(draw: st.DrawFn, kinds: set[Kind] | None = None) -> Result:
    """Draw the result of an attempt at all ``RECIPIENTS``; with ``kinds``, a failure of these."""
    refused = draw(st.dictionaries(st.sampled_from(RECIPIENTS), refusals))
    if kinds is not None:
        return Result(failure=Failure(kind=draw(st.sampled_from(sorted(kinds)))), refused=refused)
    if len(refused) == len(RECIPIENTS):
        return Result(failure=retry.mildest(refused.values()), refused=refused)
    return Result(failure=draw(st.none() | failures), refused=refused)


def end(decision: Decision) -> Status:
    return decision.moves[-1].target


def is_postponed(result: Result, policy: Policy, *, accepted_before: bool) -> bool:
    return end(retry.conclude(result, policy, RECIPIENTS, accepted_before)) is Status.RETRYING


@given(results(), policies, st.booleans(), st.integers(1, 9))
def test_a_smaller_retry_budget_never_turns_an_end_into_a_retry(
    result: Result, policy: Policy, accepted_before: bool, more: int
) -> None:
    if is_postponed(result, policy, accepted_before=accepted_before):
        return
    used = replace(policy, tries=policy.tries + more)
    allowed = replace(policy, max_retries=max(0, policy.max_retries - more))
    assert not is_postponed(result, used, accepted_before=accepted_before)
    assert not is_postponed(result, allowed, accepted_before=accepted_before)


@given(results(), policies, st.booleans())
def test_mail_that_is_too_old_is_never_postponed(
    result: Result, policy: Policy, accepted_before: bool
) -> None:
    assert not is_postponed(result, replace(policy, too_old=True), accepted_before=accepted_before)


@given(results(FOR_GOOD), policies, st.booleans())
def test_a_permanent_failure_is_not_retried(
    result: Result, policy: Policy, accepted_before: bool
) -> None:
    decision = retry.conclude(result, policy, RECIPIENTS, accepted_before)
    assert end(decision) is (Status.SENT if accepted_before else Status.FAILED)


@given(results(IN_DOUBT), policies, st.booleans())
def test_an_unknown_outcome_is_retried_only_by_policy_resend(
    result: Result, policy: Policy, accepted_before: bool
) -> None:
    decision = retry.conclude(result, policy, RECIPIENTS, accepted_before)
    assert decision.moves[0] is lifecycle.LOSE
    assert decision.uses_try
    if policy.on_unknown == "hold":
        assert end(decision) is Status.UNKNOWN
    if end(decision) is Status.RETRYING:
        assert policy.on_unknown == "resend"
        assert policy.tries < policy.max_retries


@given(results(), policies, st.booleans())
def test_an_outage_or_throttling_uses_up_no_try(
    result: Result, policy: Policy, accepted_before: bool
) -> None:
    decision = retry.conclude(result, policy, RECIPIENTS, accepted_before)
    if decision.failure is not None and decision.failure.kind in ENDLESS:
        assert not decision.uses_try
        assert policy.too_old or end(decision) is Status.RETRYING


@given(results(), policies, st.booleans())
def test_the_delay_is_bounded_and_zero_without_a_retry(
    result: Result, policy: Policy, accepted_before: bool
) -> None:
    decision = retry.conclude(result, policy, RECIPIENTS, accepted_before)
    assert 0 <= decision.delay <= max(policy.retry_delay, retry.THROTTLE_SECONDS)
    if end(decision) is not Status.RETRYING:
        assert decision.delay == 0


@given(results(), policies, st.booleans())
def test_the_moves_are_a_legal_path_from_sending(
    result: Result, policy: Policy, accepted_before: bool
) -> None:
    status = Status.SENDING
    for move in retry.conclude(result, policy, RECIPIENTS, accepted_before).moves:
        assert status in move.sources
        status = move.target
    assert status in {*lifecycle.FINAL, Status.RETRYING, Status.UNKNOWN}


@given(results(), policies, st.booleans())
def test_a_recipient_is_recorded_at_most_once_and_correctly(
    result: Result, policy: Policy, accepted_before: bool
) -> None:
    decision = retry.conclude(result, policy, RECIPIENTS, accepted_before)
    assert not decision.accepted & decision.refused.keys()
    assert decision.accepted.isdisjoint(result.refused)
    if result.failure is not None:
        assert not decision.accepted
    if end(decision) is Status.RETRYING:
        kinds = {failure.kind for failure in decision.refused.values()}
        assert kinds <= {Kind.PERMANENT}
        assert set(RECIPIENTS) - decision.accepted - decision.refused.keys(), (
            "no recipient is left to try"
        )


@given(st.data(), st.sampled_from(["resend", "hold", "fail"]), st.integers(0, 3))
def test_an_accepted_recipient_is_never_tried_again(
    data: st.DataObject, on_unknown: str, max_retries: int
) -> None:
    outstanding, accepted, tries = list(RECIPIENTS), set[int](), 0
    for _ in range(12):
        refused = data.draw(st.dictionaries(st.integers(0, len(outstanding) - 1), refusals))
        failure = data.draw(st.none() | failures)
        if len(refused) == len(outstanding):
            failure = retry.mildest(refused.values())
        # The transport numbers refusals among the recipients tried.
        result = retry.at_positions(Result(failure=failure, refused=refused), outstanding)
        policy = Policy(
            tries=tries,
            max_retries=max_retries,
            retry_delays=[1.0],
            on_unknown=on_unknown,
            too_old=data.draw(st.booleans()),
        )
        decision = retry.conclude(result, policy, outstanding, bool(accepted))
        if failure is None:
            accepted |= set(outstanding).difference(result.refused)
        tries += decision.uses_try
        assert tries <= max_retries + 1
        if end(decision) is not Status.RETRYING:
            expected = Status.SENT if accepted else Status.FAILED
            assert end(decision) in (expected, Status.UNKNOWN)
            return
        done = decision.accepted | decision.refused.keys()
        outstanding = [position for position in outstanding if position not in done]
        assert outstanding
        assert accepted.isdisjoint(outstanding)


@given(st.none() | failures, st.dictionaries(st.integers(0, 4), refusals), policies, st.booleans())
def test_decisions_are_legal_bounded_and_send_no_second_copy(
    failure: Failure | None, refused: dict[int, Failure], policy: Policy, accepted_before: bool
) -> None:
    if failure is None and len(refused) == 5:
        return  # if no recipient is accepted, the mail has a failure
    result = Result(failure=failure, refused=refused)
    decision = retry.conclude(result, policy, range(5), accepted_before)
    status = Status.SENDING
    for move in decision.moves:
        assert status in move.sources
        status = move.target
    assert status is not Status.SENDING
    assert 0 <= decision.delay <= max(policy.retry_delay, retry.THROTTLE_SECONDS)
    if status is Status.RETRYING:
        assert not policy.too_old
        assert not decision.uses_try or policy.tries < policy.max_retries
        if failure is None:
            assert decision.accepted | set(refused) == set(range(5))
    if status is Status.FAILED:
        assert failure is not None
        assert not accepted_before
    if failure is None and status is Status.SENT:
        assert set(decision.refused) == set(refused)


@given(st.data(), st.sampled_from(["resend", "hold", "fail"]), st.integers(0, 4))
def test_a_mail_ends_and_reaches_each_recipient_at_most_once(
    data: st.DataObject, on_unknown: str, max_retries: int
) -> None:
    outstanding, accepted, tries = list(range(4)), set[int](), 0
    status = Status.RETRYING
    while status is Status.RETRYING:
        refused = data.draw(st.dictionaries(st.sampled_from(outstanding), counted_refusals))
        failure = data.draw(st.none() | counted_failures)
        if len(refused) == len(outstanding):
            failure = retry.mildest(refused.values())
        result = Result(failure=failure, refused=refused)
        policy = Policy(
            tries=tries,
            max_retries=max_retries,
            retry_delays=[300.0],
            on_unknown=on_unknown,
            too_old=False,
        )
        decision = retry.conclude(result, policy, outstanding, bool(accepted))
        status = end(decision)
        taken = set(outstanding).difference(refused) if failure is None else set()
        assert not taken & accepted
        accepted |= taken
        if status is Status.RETRYING:
            outstanding = [
                position
                for position in outstanding
                if position not in decision.accepted and position not in decision.refused
            ]
            assert outstanding, "no recipient is left to try, so the mail should have ended"
            assert not accepted.intersection(outstanding)
        tries += decision.uses_try
        assert tries <= max_retries + 1
    if accepted:
        assert status in (Status.SENT, Status.UNKNOWN)
    else:
        assert status in (Status.FAILED, Status.UNKNOWN)


@given(st.lists(refusals, min_size=1), refusals)
def test_a_further_refusal_never_makes_the_outlook_worse(
    few: list[Failure], one_more: Failure
) -> None:
    hope = [Kind.PERMANENT, Kind.TRANSIENT, Kind.THROTTLED, Kind.OUTAGE]
    before, after = retry.mildest(few), retry.mildest([*few, one_more])
    assert hope.index(after.kind) >= hope.index(before.kind)
    assert after in [*few, one_more]
