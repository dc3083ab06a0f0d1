"""What is read from the site's Celery configuration."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import limits
import pytest
from celery import Celery, current_app
from django.core.mail import EmailMessage
from kombu import Queue

from django_epica_mail import conf, outbox
from django_epica_mail.broker import celery_config
from django_epica_mail.broker.celery_config import BULK_TASK, SINGLE_TASK
from django_epica_mail.delivery.limits import rate_limits
from django_epica_mail.models import EmailLog
from django_epica_mail.tasks import send_bulk_emails_task, send_email_task


@pytest.fixture
def task_routes() -> Iterator[Callable[[Any], None]]:
    """Set the site's ``CELERY_TASK_ROUTES``."""

    def set_routes(routes: Any) -> None:
        current_app.conf.task_routes = routes
        current_app.amqp.flush_routes()
        current_app.amqp.router = current_app.amqp.Router()

    yield set_routes
    set_routes(None)


def queue_one() -> EmailLog:
    return outbox.enqueue(EmailMessage("Subject", "Text", None, ["to@example.com"]))


def test_the_names_are_those_of_the_tasks() -> None:
    assert (send_email_task.name, send_bulk_emails_task.name) == (SINGLE_TASK, BULK_TASK)


def test_celery_routes_choose_queue_and_priority(smtp, task_routes) -> None:
    task_routes(
        {
            SINGLE_TASK: {"queue": "single", "priority": 8},
            BULK_TASK: {"queue": "mass", "priority": "low"},
        }
    )
    entry = {"subject": "Mail", "message": "Text", "recipient_list": ["0@example.com"]}
    send_bulk_emails_task([entry])
    single = queue_one()
    mass = EmailLog.objects.exclude(pk=single.pk).get()
    assert (mass.queue, mass.priority) == ("mass", 0)
    assert (single.queue, single.priority) == ("single", 8)


def test_a_celery_route_may_be_a_bare_queue_or_a_pattern(smtp, task_routes) -> None:
    task_routes({"django_epica_mail.tasks.send_*": "mail"})
    log = queue_one()
    assert (log.queue, log.priority) == ("mail", 9)


def test_a_celery_route_may_name_a_queue_object(task_routes) -> None:
    task_routes({BULK_TASK: {"queue": Queue("mass")}})
    assert celery_config.site_route(bulk=True)["queue"] == "mass"


def test_a_router_function_is_asked_as_celery_asks_it(smtp, task_routes) -> None:
    def route(name: str, args: Any, kwargs: Any, options: Any, task: Any = None, **_: Any) -> Any:
        if kwargs.get("urgent") or options.get("urgent") or len(args) > 1:
            return {"queue": "urgent"}
        return {"queue": "mail"} if task.name == name == SINGLE_TASK else None

    task_routes((route,))
    assert (queue_one().queue, celery_config.site_queue(bulk=True)) == ("mail", "bulk_emails")


@pytest.mark.parametrize("routes", [lambda name, *_, **__: None, "tests.integration.broker.route"])
def test_a_router_function_has_the_task_also_before_the_site_has_used_its_app(routes: Any) -> None:
    app = Celery("of-a-test", set_as_current=False)
    app.conf.task_routes = (routes, {SINGLE_TASK: "mail"})
    assert celery_config.task_for_routers(app, SINGLE_TASK).name == SINGLE_TASK


def test_routes_by_name_leave_the_tasks_of_the_app_unmade_until_the_site_needs_them() -> None:
    app = Celery("of-a-test", set_as_current=False)
    app.conf.task_routes = {SINGLE_TASK: "mail"}
    assert celery_config.task_for_routers(app, SINGLE_TASK) is None
    app.finalize()
    assert celery_config.task_for_routers(app, SINGLE_TASK).name == SINGLE_TASK


def test_routes_of_other_tasks_leave_mail_alone(smtp, task_routes) -> None:
    task_routes({"shop.tasks.*": {"queue": "shop", "priority": 1}})
    for bulk in (False, True):
        assert not any(celery_config.site_route(bulk=bulk).values())
    log = queue_one()
    assert (log.queue, log.priority) == ("emails", 9)


@pytest.mark.parametrize(
    ("limit", "rate"), [(None, None), ("10/m", "10/m"), (5, "5/s"), (5.0, "5/s"), ("5", "5/s")]
)
def test_a_rate_without_a_unit_is_per_second(monkeypatch, limit: Any, rate: str | None) -> None:
    monkeypatch.setattr(send_email_task, "rate_limit", limit)
    assert celery_config.site_rate() == rate


@pytest.mark.parametrize("limit", [0, 0.0, "0", "0/m", ""])
def test_a_rate_of_zero_limits_nothing_as_in_celery(monkeypatch, limit: Any) -> None:
    monkeypatch.setattr(send_email_task, "rate_limit", limit)
    assert celery_config.site_rate() is None
    assert rate_limits.problem() is None


@pytest.mark.parametrize(
    ("limit", "rate", "seconds"),
    [
        ("0.5", "1/2s", 2),
        (0.5, "1/2s", 2),
        ("0.5/m", "1/2m", 120),
        ("2.5", "5/2s", 2),
        ("1e-9", "1/86400s", 86_400),
    ],
)
def test_a_fraction_is_one_mail_in_several_units_of_time(
    monkeypatch, limit: Any, rate: str, seconds: int
) -> None:
    monkeypatch.setattr(send_email_task, "rate_limit", limit)
    assert celery_config.site_rate() == rate
    assert limits.parse(rate_limits._spelled_out(rate)).get_expiry() == seconds
    conf.check_rates("RATES", {"*": rate})


def test_a_rate_that_is_none_is_named(monkeypatch) -> None:
    monkeypatch.setattr(send_email_task, "rate_limit", "many/s")
    assert "rate_limit of django_epica_mail.tasks.send_email_task" in str(rate_limits.problem())


def test_the_default_rate_of_the_sites_tasks_is_no_limit_of_mail(monkeypatch) -> None:
    app = Celery("site", set_as_current=False)
    app.conf.task_default_rate_limit = "100/m"
    monkeypatch.setattr(celery_config, "app_or_default", lambda: app)
    ours = [task for name, task in app.tasks.items() if name.startswith("django_epica_mail.")]
    assert {task.rate_limit for task in ours} == {0}
    assert celery_config.site_rate() is None


class _Slow:
    """An annotation of a site's own class, which knows tasks by name."""

    def annotate(self, task: Any) -> dict[str, Any]:
        return (
            {"rate_limit": "7/m"} if task.name == "django_epica_mail.tasks.deliver_emails" else {}
        )


def test_an_annotation_of_all_tasks_is_no_limit_of_mail(monkeypatch) -> None:
    app = Celery("site", set_as_current=False)
    app.conf.task_annotations = [{"*": {"rate_limit": "10/m", "max_retries": 5}}, _Slow()]
    monkeypatch.setattr(celery_config, "app_or_default", lambda: app)
    ours = {name: it for name, it in app.tasks.items() if name.startswith("django_epica_mail.")}
    assert {it.max_retries for it in ours.values()} == {5}, "other annotations count"
    assert ours.pop(celery_config.TASK).rate_limit == "7/m", "one by name counts"
    assert {it.rate_limit for it in ours.values()} == {0}
    assert celery_config.site_rate() is None


def test_an_annotation_for_single_mail_is_its_limit(monkeypatch) -> None:
    app = Celery("site", set_as_current=False)
    app.conf.task_annotations = {SINGLE_TASK: {"rate_limit": "10/m"}}
    monkeypatch.setattr(celery_config, "app_or_default", lambda: app)
    assert celery_config.site_rate() == "10/m"


def test_an_app_without_our_tasks_has_no_rate(monkeypatch) -> None:
    app = Celery("empty", set_as_current=False)
    monkeypatch.setattr(celery_config, "app_or_default", lambda: app)
    assert celery_config.site_rate() is None
