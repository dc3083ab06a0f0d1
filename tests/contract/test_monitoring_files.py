"""Test that the Prometheus alerts and the Grafana dashboard use existing metrics."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from django_epica_mail.conf import Settings
from django_epica_mail.monitoring.health import Measurements, judge

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "example_project" / "deploy"
# The tests of the metrics compare this page with the code.
REFERENCE = (ROOT / "docs" / "reference" / "metrics.md").read_text(encoding="utf-8")


def rules() -> list[dict[str, Any]]:
    loaded = yaml.safe_load((DEPLOY / "prometheus-alerts.yaml").read_text(encoding="utf-8"))
    return [rule for group in loaded["groups"] for rule in group["rules"]]


def dashboard() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((DEPLOY / "grafana-dashboard.json").read_text())
    return loaded


def expressions() -> list[str]:
    targets = [target for panel in dashboard()["panels"] for target in panel["targets"]]
    variables = [it["query"]["query"] for it in dashboard()["templating"]["list"][1:]]
    return [*(rule["expr"] for rule in rules()), *(it["expr"] for it in targets), *variables]


def metrics() -> dict[str, set[str]]:
    """Return the labels of every series, by name."""
    found = {}
    for name, kind, labels in re.findall(
        r"^\| `(\w+)` \| (\w+) \| (.*?) \|", REFERENCE, re.MULTILINE
    ):
        names = set(re.findall(r"`(\w+)`", labels))
        if kind == "histogram":
            found |= {f"{name}_bucket": {*names, "le"}, f"{name}_sum": names}
        else:
            found[name] = names
    return found


@pytest.mark.parametrize("expression", expressions())
def test_each_expression_uses_existing_metrics_and_labels(expression: str) -> None:
    asked = set(re.findall(r"epica_mail_\w+", expression))
    assert asked
    assert asked <= metrics().keys()
    has = set.union(*(metrics()[name] for name in asked))
    selected = re.findall(r"(\w+)=~?\"", expression)
    grouped = [
        label.strip()
        for labels in re.findall(r"by \(([^)]*)\)", expression)
        for label in labels.split(",")
    ]
    assert {*selected, *grouped} <= has
    assert expression.count("(") == expression.count(")")
    assert expression.count("{") == expression.count("}")


def test_the_alerts_name_every_health_check() -> None:
    signs = Measurements(
        due_ages={},
        claimable=(),
        paused=(),
        out_of_order=(),
        first_mail_age=None,
        last_sweep_age=None,
        last_attempt_age=None,
        is_at_work=False,
        sent=0,
        failed=0,
        rates=[],
    )
    checks = {check.name for check in judge(signs, Settings()).checks}
    named = set(re.findall(r'check="(\w+)"', " ".join(expressions())))
    assert named == checks - {"breaker"}, "another alert covers the breaker and names the transport"


def test_an_alert_has_annotations_that_use_its_own_labels() -> None:
    for rule in rules():
        assert {"summary", "description"} == rule["annotations"].keys()
        assert rule["labels"]["severity"] in ("critical", "warning")
        used = set(re.findall(r"\$labels\.(\w+)", str(rule["annotations"])))
        grouped = re.findall(r"by \(([^)]*)\)", rule["expr"])
        assert used <= {label.strip() for labels in grouped for label in labels.split(",")}


def test_the_panels_of_the_dashboard_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard()["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + i, at["y"] + j) for i in range(at["w"]) for j in range(at["h"])}
        assert not cells & taken
        assert at["x"] + at["w"] <= 24
        taken |= cells
