"""Times for people, in one 24-hour format."""

from __future__ import annotations

from datetime import datetime, timezone

import time_machine

from django_epica_mail.admin import times

AT = datetime(2026, 11, 30, 17, 15, tzinfo=timezone.utc)  # 20:15 in Istanbul


def test_a_time_of_today_has_no_day() -> None:
    with time_machine.travel(AT, tick=False):
        assert times.clock(AT) == "20:15"
    assert times.clock(AT.replace(year=2020)) == "30 Nov 20:15"
    assert times.moment(AT) == "30 Nov 2026 20:15"


def test_the_zone_is_named_with_its_distance_from_utc() -> None:
    assert times.zone() == "Times are those of Europe/Istanbul (UTC+03:00)."
