"""Check what must be true at the end of every run."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from devservers.smtp_inbox import AcceptedMessage
from django_epica_mail.conf import PERMITS

FINAL = {"sent", "failed", "cancelled", "expired", "suppressed"}
AMBIGUOUS = {"unknown", "worker_lost", "poison"}


@dataclass
class Verdict:
    """The counts of a run, and every violation of an invariant."""

    mails: int = 0
    accepted: int = 0
    passed_through_unknown: int = 0
    resent: int = 0
    """Mails accepted twice that have been ``unknown`` and may be resent."""
    breaches: list[str] = field(default_factory=list)


def judge(
    journal: Iterable[dict[str, Any]],
    rows: list[dict[str, Any]],
    accepted: list[AcceptedMessage],
    stalls: int,
) -> Verdict:
    """Compare the journal of queued mail, the site's rows and the mail that arrived."""
    verdict = Verdict(mails=len(rows), accepted=len(accepted))
    breaches = verdict.breaches
    by_key = {row["key"]: row for row in rows}
    arrived = _by_key(accepted)
    for line in journal:
        for mail in line["mails"]:
            stored = mail["key"] in by_key
            if line["fate"] == "committed" and not stored:
                breaches.append(f"{mail['key']}: committed, but its row is missing")
            if line["fate"] == "rolled back" and (stored or mail["key"] in arrived):
                breaches.append(f"{mail['key']}: rolled back, but stored or sent")
    for key in arrived.keys() - by_key.keys():
        breaches.append(f"{key}: arrived, but has no row")
    for row in rows:
        breaches += [f"{row['key']}: {breach}" for breach in _breaches(row, arrived[row["key"]])]
        verdict.passed_through_unknown += bool(AMBIGUOUS & set(row["kinds"]))
        verdict.resent += bool(_twice(arrived[row["key"]]))
    breaches += _beyond_permits(rows, stalls)
    return verdict


def _by_key(accepted: list[AcceptedMessage]) -> defaultdict[str, list[AcceptedMessage]]:
    arrived: defaultdict[str, list[AcceptedMessage]] = defaultdict(list)
    for message in accepted:
        arrived[message.header("Subject")].append(message)
    return arrived


def _twice(messages: list[AcceptedMessage]) -> list[str]:
    """Return the recipients for whom the server accepted the mail more than once."""
    counts = Counter(recipient for message in messages for recipient in message.recipients)
    return [recipient for recipient, count in counts.items() if count > 1]


def _breaches(row: dict[str, Any], messages: list[AcceptedMessage]) -> list[str]:
    found = []
    status, policy = row["status"], row["policy"]
    ambiguous = bool(AMBIGUOUS & set(row["kinds"]))
    is_held = status == "unknown" and (policy == "hold" or row["kinds"][-1:] == ["poison"])
    if status not in FINAL and not is_held:
        found.append(f"is stuck: {status}")
    if status in FINAL and (row["pending"] is not None or row["leased"]):
        found.append(f"is {status}, but still pending or leased")
    if status == "sent" and not messages:
        found.append("is sent, but never arrived")
    if {message.message_id for message in messages} - {row["message_id"]}:
        found.append("arrived under another Message-ID")
    if {message.header("Idempotency-Key") for message in messages} - {row["key"]}:
        found.append("arrived under another idempotency key")
    if _twice(messages) and not (ambiguous and policy == "resend"):
        found.append(f"arrived twice, with policy {policy} and attempts {row['kinds']}")
    if status == "failed" and messages and not ambiguous and not row["spoiled"]:
        found.append("is failed, but arrived")
    if status == "cancelled" and messages and not row["kinds"]:
        found.append("is cancelled, but arrived")
    if row["spoiled"] and status == "sent" and not messages:
        found.append("is unreadable, but sent")
    addresses = {address for address, _ in row["recipients"]}
    for message in messages:
        if not {recipient.lower() for recipient in message.recipients} <= addresses:
            found.append("arrived at an address that is not a recipient")
    return found + ([] if is_held else _unreached(row, messages, ambiguous))


def _unreached(row: dict[str, Any], messages: list[AcceptedMessage], ambiguous: bool) -> list[str]:
    """Report recipients who did not get the mail although nothing permanent prevented it."""
    reached = {recipient.lower() for message in messages for recipient in message.recipients}
    if row["spoiled"] or row["status"] == "cancelled" or (row["policy"] != "resend" and ambiguous):
        return []
    missing = [
        address
        for address, outcome in row["recipients"]
        if not address.startswith("never") and address not in reached and outcome != "cancelled"
    ]
    return [f"{row['status']} {row['kinds']}: did not reach {missing}"] if missing else []


def _beyond_permits(rows: list[dict[str, Any]], stalls: int) -> list[str]:
    """Report worker processes that left more mails unknown than they may hold."""
    lost: Counter[str] = Counter(
        worker
        for row in rows
        for kind, worker in zip(row["kinds"], row["workers"], strict=True)
        if kind == "worker_lost"
    )
    # A process dies only once, but is also taken for dead each time it is paused.
    limit = PERMITS * (1 + stalls)
    return [f"{worker} left {n} unknown" for worker, n in lost.items() if n > limit]
