"""How failures are classified, and what follows from them."""

from __future__ import annotations

import smtplib
import socket

import pytest

from django_epica_mail import lifecycle, retry
from django_epica_mail.lifecycle import Status
from django_epica_mail.retry import Decision, Failure, Kind, Policy, Result, Scope, Stage


def policy(**fields) -> Policy:
    defaults = {
        "tries": 0,
        "max_retries": 3,
        "retry_delay": 300.0,
        "on_unknown": "resend",
        "too_old": False,
    }
    return Policy(**{**defaults, **fields})


@pytest.mark.parametrize(
    ("code", "text", "kind"),
    [
        (450, "4.2.0 Greylisted", Kind.TRANSIENT),
        (451, "4.3.0 Try again later", Kind.TRANSIENT),
        (452, "4.3.1 Disk full", Kind.TRANSIENT),
        (421, "4.3.2 Shutting down", Kind.OUTAGE),
        (421, "4.7.0 Too many messages, slow down", Kind.THROTTLED),
        (550, "5.1.1 No such user", Kind.PERMANENT),
        (552, "5.3.4 Message too big", Kind.PERMANENT),
        (554, "5.7.1 Spam", Kind.PERMANENT),
        (199, "nonsense", Kind.TRANSIENT),
        (450, "4.2.1 He is receiving mail at a rate that prevents more", Kind.THROTTLED),
        (452, "4.4.5 Congested", Kind.THROTTLED),
        (453, "4.3.2 Accepting no messages", Kind.OUTAGE),
        (452, "4.2.2 Mailbox full", Kind.TRANSIENT),
        (552, "5.2.2 Mailbox full", Kind.TRANSIENT),
        (550, "5.2.21 Not in the table", Kind.PERMANENT),
        (554, "5.7.8 Credentials expired", Kind.OUTAGE),
        (550, "Too many invalid recipients", Kind.PERMANENT),
        (550, "The words 5.2.2 within", Kind.PERMANENT),
    ],
)
def test_a_reply_is_classified(code: int, text: str, kind: Kind) -> None:
    failure = retry.classify_reply(code, text.encode())
    assert (failure.kind, failure.code, failure.reply) == (kind, code, text)


@pytest.mark.parametrize(
    ("error", "stage", "kind"),
    [
        (ConnectionRefusedError(), Stage.CONNECT, Kind.OUTAGE),
        (socket.gaierror(), Stage.CONNECT, Kind.OUTAGE),
        (TimeoutError(), Stage.CONNECT, Kind.OUTAGE),
        (smtplib.SMTPAuthenticationError(535, b"5.7.8 Bad"), Stage.CONNECT, Kind.OUTAGE),
        (smtplib.SMTPConnectError(554, b"No"), Stage.CONNECT, Kind.OUTAGE),
        (smtplib.SMTPConnectError(421, b"Too many connections"), Stage.CONNECT, Kind.THROTTLED),
        (smtplib.SMTPServerDisconnected(), Stage.ENVELOPE, Kind.TRANSIENT),
        (ConnectionResetError(), Stage.ENVELOPE, Kind.TRANSIENT),
        (smtplib.SMTPSenderRefused(550, b"No", "a"), Stage.ENVELOPE, Kind.PERMANENT),
        (smtplib.SMTPDataError(451, b"Later"), Stage.ENVELOPE, Kind.TRANSIENT),
        (ValueError("bad address"), Stage.ENVELOPE, Kind.MESSAGE),
        (smtplib.SMTPNotSupportedError("SMTPUTF8"), Stage.ENVELOPE, Kind.MESSAGE),
        (RuntimeError("a time limit"), Stage.ENVELOPE, Kind.TRANSIENT),
        (smtplib.SMTPServerDisconnected(), Stage.CONTENT, Kind.UNKNOWN),
        (TimeoutError(), Stage.CONTENT, Kind.UNKNOWN),
        (smtplib.SMTPDataError(-1, b"garbage"), Stage.ANSWERED, Kind.UNKNOWN),
        (smtplib.SMTPDataError(554, b"Spam"), Stage.ANSWERED, Kind.PERMANENT),
        (smtplib.SMTPDataError(451, b"Later"), Stage.ANSWERED, Kind.TRANSIENT),
        (ConnectionRefusedError(), Stage.UNSEEN, Kind.OUTAGE),
        (TimeoutError(), Stage.UNSEEN, Kind.UNKNOWN),
    ],
)
def test_an_exception_is_classified_by_stage(error: Exception, stage: Stage, kind: Kind) -> None:
    assert retry.classify(error, stage).kind is kind


@pytest.mark.parametrize(
    ("code", "text", "kind", "scope"),
    [
        (550, "5.7.8 Expired", Kind.OUTAGE, Scope.CREDENTIALS),
        (530, "5.7.0 Authentication required", Kind.OUTAGE, Scope.CREDENTIALS),
        (530, "Must issue STARTTLS first", Kind.OUTAGE, Scope.CREDENTIALS),
        (552, "5.2.2 Mailbox full", Kind.TRANSIENT, Scope.RECIPIENT),
        (453, "4.3.2 Accepting no messages", Kind.OUTAGE, Scope.SERVER),
        (452, "4.4.5 Congested", Kind.THROTTLED, Scope.SERVER),
        (421, "4.2.1 Mailbox disabled", Kind.TRANSIENT, Scope.RECIPIENT),
        (421, "4.7.0 This message has suspicious content", Kind.TRANSIENT, Scope.MAIL),
        (421, "4.6.0 Bad media", Kind.TRANSIENT, Scope.MAIL),
        (421, "4.7.28 Unusual rate of mail", Kind.THROTTLED, Scope.MAIL),
        (421, "4.3.0 Temporary system problem", Kind.TRANSIENT, Scope.SERVER),
        (421, "Service not available", Kind.TRANSIENT, Scope.SERVER),
        (550, "5.1.8 Bad sender's system address", Kind.PERMANENT, Scope.SENDER),
        (553, "5.1.7 Bad sender's mailbox address", Kind.PERMANENT, Scope.SENDER),
        (550, "5.1.1 No such user", Kind.PERMANENT, Scope.RECIPIENT),
        (550, "5.2.1 Disabled", Kind.PERMANENT, Scope.RECIPIENT),
        (554, "5.7.1 Spam", Kind.PERMANENT, Scope.MAIL),
        (450, "4.2.0 Greylisted", Kind.TRANSIENT, Scope.MAIL),
    ],
)
def test_each_row_of_the_table_gives_a_fault_its_kind_and_scope(code, text, kind, scope) -> None:
    failure = retry.classify_reply(code, text)
    assert (failure.kind, failure.scope) == (kind, scope)


def test_a_failure_to_connect_concerns_the_server() -> None:
    for error in (ConnectionRefusedError(), smtplib.SMTPConnectError(554, b"No")):
        failure = retry.classify(error, Stage.CONNECT)
        assert (failure.kind, failure.scope) == (Kind.OUTAGE, Scope.SERVER)


def test_a_confirmed_outage_uses_no_try_and_lets_another_mail_probe() -> None:
    doubtful = Failure(kind=Kind.TRANSIENT, scope=Scope.SERVER)
    decision = retry.conclude(Result(failure=doubtful.confirmed()), policy(), [0], False)
    assert (decision.uses_try, decision.delay) == (False, 300)
    unknown = Failure(kind=Kind.UNKNOWN, scope=Scope.SERVER).confirmed()
    assert (unknown.kind, unknown.stops_transport) == (Kind.UNKNOWN, True)


def test_one_recipient_to_retry_keeps_the_mail_alive() -> None:
    error = smtplib.SMTPRecipientsRefused({"a": (550, b"Gone"), "b": (451, b"Later")})
    assert retry.classify(error, Stage.ENVELOPE).kind is Kind.TRANSIENT


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
    ],
)
def test_a_failure_decides_status_delay_and_budget(kind, fields, end, delay, uses_try) -> None:
    decision = decide(kind, **fields)
    assert decision.moves[-1].target is end
    assert (decision.delay, decision.uses_try) == (delay, uses_try)


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
