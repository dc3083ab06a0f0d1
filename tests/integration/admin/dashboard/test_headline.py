"""The headline of the dashboard, for what was measured."""

from __future__ import annotations

import pytest

from django_epica_mail.admin.dashboard.headline import headline
from django_epica_mail.admin.gates import Gate
from django_epica_mail.models import DeliveryGate
from django_epica_mail.monitoring.health import Check, HealthReport

WELL = HealthReport((Check("worker", True, "A worker is sending."),))
FLOWS = [{"queue": "emails", "transport": it, "backlog": None} for it in ("smtp", "ses")]
DOWN = Gate(
    scope="transport",
    name="ses",
    row=DeliveryGate(scope="transport", name="ses", outages=1, reason="Connection\nrefused"),
)


def test_a_single_closed_transport_is_an_exception() -> None:
    found = headline(WELL, [DOWN], FLOWS)
    assert found.level == "warn"
    assert found.text == "Mail flows, except transport ses: Connection refused"
    assert found.causes[0].do == "probe transport ses"


def test_no_mail_flows_if_each_lane_is_closed() -> None:
    assert headline(WELL, [DOWN], FLOWS[1:]).level == "bad"


@pytest.mark.parametrize(("name", "level"), [("worker", "bad"), ("beat", "warn")])
def test_a_failing_check_is_a_cause(name, level) -> None:
    found = headline(HealthReport((Check(name, False, "Why."),)), [], FLOWS)
    assert (found.level, found.causes[0].text) == (level, "Why.")


def test_mail_flows_without_a_cause() -> None:
    assert headline(WELL, [], FLOWS).level == "good"
