"""Test that the checks of a run report every violation of an invariant."""

from __future__ import annotations

import time
from typing import Any

import pytest

from devservers.smtp_inbox import AcceptedMessage
from django_epica_mail.conf import PERMITS
from tests.faults.invariants import Verdict, judge

KEY = "key"


def row(**changes: Any) -> dict[str, Any]:
    """Return what a site stores of a sent mail with one recipient."""
    return {
        "key": KEY,
        "message_id": f"<{KEY}@example.com>",
        "status": "sent",
        "policy": "resend",
        "pending": None,
        "leased": False,
        "spoiled": False,
        "kinds": [""],
        "workers": ["host:1"],
        "recipients": [("good@example.com", "")],
        **changes,
    }


def arrival(
    to: str = "good@example.com", message_id: str = f"<{KEY}@example.com>", header: str = KEY
) -> AcceptedMessage:
    head = f"Subject: {KEY}\r\nMessage-ID: {message_id}\r\nIdempotency-Key: {header}\r\n"
    return AcceptedMessage(
        sender="shop@example.com",
        recipients=(to,),
        content=f"{head}\r\nBody".encode(),
        message_id=message_id,
        connection=1,
        time=time.time(),
        options={},
    )


def judged(
    rows: list[dict[str, Any]], arrivals: list[AcceptedMessage], fate: str = "committed"
) -> Verdict:
    return judge([{"fate": fate, "mails": [{"key": KEY}]}], rows, arrivals, stalls=0)


def test_a_mail_that_arrived_once_is_no_breach() -> None:
    assert judged([row()], [arrival()]).breaches == []


def test_a_resent_unknown_mail_may_arrive_twice() -> None:
    verdict = judged([row(kinds=["unknown", ""], workers=["a", "b"])], [arrival(), arrival()])
    assert verdict.breaches == []
    assert verdict.resent == verdict.passed_through_unknown == 1


def test_a_mail_set_apart_waits_for_a_person_whether_or_not_it_arrived() -> None:
    set_apart = row(status="unknown", kinds=["worker_lost", "poison"], workers=["a", "b"])
    assert judged([set_apart], []).breaches == []
    assert judged([set_apart], [arrival()]).breaches == []
    assert judged([{**set_apart, "kinds": ["poison", "worker_lost"]}], []).breaches


UNKNOWN = {"kinds": ["unknown"]}
BREACHES: dict[str, tuple[list[dict[str, Any]], list[AcceptedMessage], str]] = {
    "its row is missing": ([], [], "committed"),
    "rolled back, but": ([row()], [arrival()], "rolled back"),
    "has no row": ([], [arrival()], "rolled back"),
    "is stuck: queued": ([row(status="queued", pending=9)], [], "committed"),
    "is stuck: sending": ([row(status="sending", leased=True)], [], "committed"),
    "is stuck: unknown": ([row(status="unknown", **UNKNOWN)], [arrival()], "committed"),
    "still pending or leased": ([row(pending=9)], [arrival()], "committed"),
    "never arrived": ([row()], [], "committed"),
    "another Message-ID": ([row()], [arrival(message_id="<other@example.com>")], "committed"),
    "another idempotency key": ([row()], [arrival(header="other")], "committed"),
    "with policy resend": (
        [row(kinds=["", ""], workers=["a", "b"])],
        [arrival(), arrival()],
        "committed",
    ),
    "with policy hold": ([row(policy="hold", **UNKNOWN)], [arrival(), arrival()], "committed"),
    "with policy fail": ([row(policy="fail", **UNKNOWN)], [arrival(), arrival()], "committed"),
    "is failed, but arrived": (
        [row(status="failed", kinds=["permanent"])],
        [arrival()],
        "committed",
    ),
    "is cancelled, but arrived": (
        [row(status="cancelled", kinds=[], workers=[])],
        [arrival()],
        "committed",
    ),
    "is unreadable, but sent": ([row(spoiled=True)], [], "committed"),
    "not a recipient": ([row()], [arrival(), arrival("stranger@example.com")], "committed"),
    "did not reach": (
        [row(recipients=[("good@example.com", ""), ("good2@example.com", "")])],
        [arrival()],
        "committed",
    ),
}


@pytest.mark.parametrize("words", BREACHES)
def test_each_breach_is_reported(words: str) -> None:
    rows, arrivals, fate = BREACHES[words]
    assert any(words in breach for breach in judged(rows, arrivals, fate).breaches)


def test_a_worker_beyond_its_permits_is_reported() -> None:
    lost = [
        row(key=str(number), kinds=["worker_lost"], recipients=[]) for number in range(PERMITS + 1)
    ]
    breaches = judge([], lost, [], stalls=0).breaches
    assert f"host:1 left {PERMITS + 1} unknown" in breaches


def test_a_recipient_for_whom_a_mail_was_cancelled_need_not_get_it() -> None:
    recipients = [("good@example.com", "accepted"), ("later@example.com", "cancelled")]
    assert judged([row(recipients=recipients)], [arrival()]).breaches == []
