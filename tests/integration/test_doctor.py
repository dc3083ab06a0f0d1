"""The doctor's findings, each by what makes it speak."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import django
import pytest
from celery import current_app

from django_epica_mail import doctor, maintenance
from django_epica_mail.doctor import Finding

pytestmark = pytest.mark.django_db


class Inspect:
    """The answer of workers, by their names, with the queues they consume."""

    def __init__(self, answer: dict[str, Any] | Exception | None) -> None:
        self._answer = answer

    def active_queues(self) -> dict[str, Any] | None:
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """Say which queues are consumed, or what the broker raises."""

    def consume(answer: Any) -> None:
        if isinstance(answer, list):
            answer = {"worker@host": [{"name": name} for name in answer]}
        monkeypatch.setattr(type(current_app.control), "inspect", lambda *_, **__: Inspect(answer))

    consume(["celery", "emails", "bulk_emails"])
    return consume


def found(words: str, **options: Any) -> Finding:
    (finding,) = [it for it in doctor.examine(**options) if words in it.text]
    assert finding.remedy
    return finding


def test_a_broker_that_is_down_is_found(workers) -> None:
    workers(ConnectionError("refused"))
    assert found("The broker cannot be asked for its workers (ConnectionError)").level == "error"


def test_no_worker_at_all_is_found(workers) -> None:
    workers(None)
    assert "-Q celery,bulk_emails,emails" in found("No worker answers").remedy


def test_a_queue_that_nobody_consumes_is_found(workers, epica_mail, queue_mail) -> None:
    epica_mail(ROUTES=[{"match": {"bulk": True}, "queue": "newsletter"}])
    queue_mail(queue="invoices")
    workers(["emails", "bulk_emails"])
    assert found("the queue newsletter").level == "error"
    assert found("the queue invoices").level == "error"


def test_a_beat_that_does_not_beat_is_found(workers, queue_mail, travel, rings) -> None:
    queue_mail()
    assert found("The last sweep was never").level == "error"
    maintenance.dispatch()
    assert not [it for it in doctor.examine() if "sweep" in it.text]
    travel(minutes=6)
    assert found("The last sweep was").level == "error"


def test_a_route_of_celerys_that_takes_everything_is_found(workers, monkeypatch) -> None:
    assert doctor._broad_routes({"*": "default"}) == ["*"]
    assert doctor._broad_routes({"django_epica_mail.tasks.*": "mail"}) == []
    assert doctor._broad_routes({"shop.*": "shop"}) == []
    own = dict.fromkeys(
        (
            "django_epica_mail.tasks.send_email_task",
            "django_epica_mail.tasks.send_bulk_emails_task",
        ),
        "mail",
    )
    assert doctor._broad_routes({"*": "default", **own}) == []


def test_djangos_own_sender_is_found(workers, settings) -> None:
    settings.DEFAULT_FROM_EMAIL = "webmaster@localhost"
    assert found("webmaster@localhost").level == "warning"


def test_results_that_are_soon_forgotten_are_found(workers, monkeypatch) -> None:
    monkeypatch.setitem(current_app.conf, "result_backend", "cache+memory://")
    monkeypatch.setitem(current_app.conf, "result_expires", timedelta(minutes=5))
    assert "CELERY_RESULT_EXPIRES" in found("Results are kept for 300 s").remedy


def test_a_transport_that_sends_nothing_is_found(workers, smtp, settings, epica_mail) -> None:
    spec = {"BACKEND": "django.core.mail.backends.console.EmailBackend"}
    if django.VERSION >= (6, 1):
        settings.MAILERS = {**settings.MAILERS, "screen": spec}
    else:
        epica_mail(TRANSPORTS={"screen": spec})
    assert found("which sends nothing").level == "error"
    settings.DEBUG = True
    assert not [it for it in doctor.examine() if "sends nothing" in it.text]


def test_a_transport_that_cannot_be_opened_is_found_only_on_request(workers, smtp) -> None:
    smtp.refuse_connections()
    assert not [it for it in doctor.examine() if "cannot be opened" in it.text]
    assert "ConnectionRefusedError" in found("cannot be opened", open_transports=True).text
    smtp.listen_again()
    assert not [it for it in doctor.examine(open_transports=True) if "opened" in it.text]


def test_what_the_checks_know_the_doctor_says_first(workers, smtp, epica_mail) -> None:
    epica_mail(ROUTES=[{"transport": ["gone", "smtp"]}])
    first, *_ = doctor.examine()
    assert (first.level, first.remedy) == ("error", "There are: smtp.")
    assert "Rule 0 of EPICA_MAIL['ROUTES'] names the transport 'gone'" in first.text


def test_it_explains_where_a_mail_would_go(smtp, epica_mail) -> None:
    epica_mail(
        ROUTES=[
            {"match": {"to": "*@gov.tr"}, "queue": "official", "transport": ["ses", "smtp"]},
            {"match": {"bulk": True}, "priority": 1},
        ]
    )
    official = doctor.explain("A@GOV.TR")
    assert (official["rule"], official["queue"]) == (0, "official")
    assert official["transports"] == ["ses", "smtp"]
    assert doctor.explain("a@example.com")["rule"] == "none"
    assert doctor.explain("a@example.com", bulk=True)["priority"] == 1
