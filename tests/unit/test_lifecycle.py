"""The statuses and the moves between them."""

from __future__ import annotations

from django_epica_mail import lifecycle
from django_epica_mail.lifecycle import CLAIMABLE, FINAL, MOVES, Status


def test_every_status_can_be_reached() -> None:
    assert {move.target for move in MOVES} == set(Status)


def test_sent_or_suppressed_mail_never_moves_again() -> None:
    for status in (Status.SENT, Status.SUPPRESSED):
        assert not [move.name for move in MOVES if status in move.sources]


def test_only_requeue_and_confirm_change_a_final_status() -> None:
    back = {move.name for move in MOVES if move.sources & FINAL}
    assert back == {"requeue", "confirm"}
    assert lifecycle.CONFIRM.target == Status.SENT


def test_only_claimable_mail_is_claimed() -> None:
    assert lifecycle.CLAIM.sources == CLAIMABLE
    assert not CLAIMABLE & FINAL


def test_mail_being_sent_cannot_be_cancelled() -> None:
    assert Status.SENDING not in lifecycle.CANCEL.sources


def test_the_stored_values_are_those_documented() -> None:
    stored = "queued sending retrying sent failed unknown cancelled expired suppressed"
    assert Status.values == stored.split()
