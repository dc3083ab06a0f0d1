"""The table of moves."""

from __future__ import annotations

from django_epica_mail import lifecycle
from django_epica_mail.lifecycle import CLAIMABLE, FINAL, MOVES, Status


def test_every_status_can_be_reached_and_has_one_way_to_it_at_least() -> None:
    assert {move.target for move in MOVES} == set(Status)


def test_what_is_sent_or_suppressed_never_moves_again() -> None:
    for status in (Status.SENT, Status.SUPPRESSED):
        assert not [move.name for move in MOVES if status in move.sources]


def test_only_a_person_or_the_proof_that_it_was_sent_changes_what_is_over() -> None:
    back = {move.name for move in MOVES if move.sources & FINAL}
    assert back == {"requeue", "confirm"}
    assert lifecycle.CONFIRM.target == Status.SENT


def test_only_what_is_claimable_is_claimed() -> None:
    assert lifecycle.CLAIM.sources == CLAIMABLE
    assert not CLAIMABLE & FINAL


def test_what_a_worker_holds_cannot_be_cancelled() -> None:
    assert Status.SENDING not in lifecycle.CANCEL.sources


def test_the_stored_strings_are_those_promised() -> None:
    stored = "queued sending retrying sent failed unknown cancelled expired suppressed"
    assert Status.values == stored.split()
