"""Run the code of the how-to guides unchanged, on real servers and a real worker."""

from __future__ import annotations

import re
from typing import Any

import pytest

from devservers.process import wait_until
from tests.acceptance.places import REPOSITORY

HOW_TOS = REPOSITORY / "docs" / "how-to"


def blocks(page: str) -> list[str]:
    text = (HOW_TOS / page).read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def run_page(page: str) -> int:
    """Run the code blocks of a page in order inside the site; return their number."""
    names: dict[str, Any] = {"__name__": "page"}
    found = blocks(page)
    for number, block in enumerate(found):
        exec(compile(block, f"{page}:{number}", "exec"), names)
    return len(found)


def test_every_call_in_the_guide_to_sending_works(open_site) -> None:
    site = open_site("postgresql")
    site.start_workers(2)
    assert site.call(run_page, "sending.md") == 13
    ends = {"sent": 1113, "cancelled": 1, "queued": 100}  # of which 100 wait for an hour
    wait_until(lambda: site.statuses() == ends, timeout=60, what="mail")
    assert set(site.arrivals().values()) == {1}


def test_the_routes_in_the_guide_to_routing_are_valid(open_site) -> None:
    site = open_site()
    assert site.call(check_routes) == []


def check_routes() -> list[str]:
    from django.test import override_settings

    from django_epica_mail import conf

    names: dict[str, Any] = {}
    for block in blocks("routing.md"):
        exec(block, names)
    with override_settings(EPICA_MAIL=names["EPICA_MAIL"]):
        assert len(conf.get().routes) == 4
    tasks = set(names["CELERY_TASK_ROUTES"])
    from celery import current_app

    return sorted(tasks - set(current_app.tasks))


def run_report() -> list[str]:
    """Run the periodic task of the page twice and the shop's once."""
    names: dict[str, Any] = {"__name__": "shop.page"}
    for block in blocks("periodic-tasks.md"):
        exec(block, names)
    assert set(names["CELERY_BEAT_SCHEDULE"]) == {
        "dispatch-due-emails",
        "retry-failed-emails",
        "cleanup-old-email-logs",
        "read-bounces",
        "daily-report",
    }
    from shop.tasks import send_daily_report

    return [names["send_daily_report"](), names["send_daily_report"](), send_daily_report()]


def test_a_periodic_report_is_sent_once_if_run_twice(open_site) -> None:
    site = open_site()
    first, again, other = site.call(run_report)
    assert first == again != other
    site.start_worker()
    site.start_beat()
    site.wait_for(sent=2)


@pytest.mark.parametrize("page", sorted(path.name for path in HOW_TOS.glob("*.md")))
def test_the_code_of_every_how_to_is_valid_python(page: str) -> None:
    for number, block in enumerate(blocks(page)):
        compile(block, f"{page}:{number}", "exec")
