"""Where claims begin to look for due mail, so that they need not walk over what they cannot have.

A claimed e-mail leaves a dead index entry, which stays as long as any open transaction might read
it; and the mail of a slowed domain or a paused category stays where it is. A claim from the
beginning would walk over all of that.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from django_epica_mail.models import EmailLog
from django_epica_mail.queueing.dequeue import HeldBack, Lane

_FULL_LOOK_SECONDS = 2.0
_MARGIN = timedelta(seconds=2)
"""How much older than the last claimed e-mail one may be that was committed after it."""
_LONG_MARGIN = timedelta(seconds=10)
"""The same while mail that is held back makes full looks rare."""
_SHARE = 0.05
"""The share of the time that full looks may take then."""


_Held = tuple[tuple[str, ...], tuple[tuple[str, str], ...]]
_NOTHING: _Held = (), ()


class ScanStarts:
    """Where the claims of a queue begin to look, for each lane.

    Most claims begin near the last one; now and then, and before a queue counts as empty, a claim
    looks at everything. While domains are slowed or categories paused, what such a look has passed
    is remembered, and the next one waits until looks take no more than ``_SHARE`` of the time.
    """

    def __init__(self) -> None:
        self._starts: dict[Lane, datetime] = {}
        self._looks: dict[frozenset[Lane], tuple[float, float]] = {}
        """When a claim last looked at everything, in monotonic seconds, and for how long."""
        self._held = _NOTHING
        self.others_first = False
        """Whether the next claim looks for other mail before that of slowed domains."""

    def begin(self) -> None:
        """Look at everything first, because a task begins; not while mail is held back."""
        if self._held == _NOTHING:
            self._looks = {}

    def bounds(self, lanes: Sequence[Lane], held_back: HeldBack) -> Mapping[Lane, datetime]:
        """Return the ``due_at`` to begin at, by lane; empty for a full look."""
        held = tuple(held_back.categories), tuple(held_back.domains)
        if held != self._held:
            self._starts, self._looks, self._held = {}, {}, held
        at, seconds = self._look_at(lanes)
        if time.monotonic() - at >= max(_FULL_LOOK_SECONDS, seconds / _SHARE):
            self._looks[frozenset(lanes)] = time.monotonic(), seconds
            if held == _NOTHING:
                for lane in lanes:
                    self._starts.pop(lane, None)
            return {}
        return {lane: self._starts[lane] for lane in lanes if lane in self._starts}

    def look_at_all(self, lanes: Sequence[Lane]) -> bool:
        """Make the next claim look at everything, if it may by now; return whether it will."""
        at, seconds = self._look_at(lanes)
        if may_look := time.monotonic() - at >= seconds / _SHARE:
            self._looks.pop(frozenset(lanes), None)
        return may_look

    def note(
        self,
        lanes: Sequence[Lane],
        rows: Sequence[EmailLog],
        *,
        moment: datetime | None,
        seconds: float | None,
    ) -> None:
        """Remember how far a claim came that asked the lanes in this order, and found ``rows``.

        ``moment`` is the database's time before it, ``None`` unless mail is held back; ``seconds``
        is how long it took if it looked at everything, otherwise ``None``.
        """
        margin = _MARGIN if moment is None else _LONG_MARGIN
        for row in rows:
            self._starts[row.transport, row.priority] = row.due_at - margin
        if moment is None:
            return
        if seconds is not None:
            self._looks[frozenset(lanes)] = time.monotonic(), seconds
        found = {(row.transport, row.priority) for row in rows}
        for lane in lanes:  # up to the first that has any
            if lane in found:
                break
            self._starts[lane] = moment - margin

    def _look_at(self, lanes: Sequence[Lane]) -> tuple[float, float]:
        return self._looks.get(frozenset(lanes), (float("-inf"), 0.0))


_of_queues: dict[tuple[str, str], ScanStarts] = {}
_MOST_QUEUES = 256
_LONGEST_NAME = 64
"""Characters of the name of a queue that has mail; messages of the broker may carry any."""


def of_queue(queue: str, using: str) -> ScanStarts:
    """Return where this process's claims of a queue begin to look, for a task that begins.

    It remembers that of the ``_MOST_QUEUES`` queues that were last looked at.
    """
    starts = _of_queues.pop((using, queue), None) or ScanStarts()
    if len(queue) <= _LONGEST_NAME:
        _of_queues[using, queue] = starts
    if len(_of_queues) > _MOST_QUEUES:
        _of_queues.pop(next(iter(_of_queues)), None)
    starts.begin()
    return starts


def forget() -> None:
    """Look at everything in the next claim, because a test has gone back or moved the clock."""
    _of_queues.clear()
