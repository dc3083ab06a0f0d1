"""The dashboard: what viewers see, and the buttons that only operators have."""

from __future__ import annotations

import re
import time
from datetime import timedelta
from html import unescape
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone, translation

from devservers.smtp_faults import refuse
from django_epica_mail import maintenance
from django_epica_mail.broker import workers
from django_epica_mail.delivery import gates
from django_epica_mail.delivery.limits import slowed_domains
from django_epica_mail.models import DeliveryGate, EmailLog
from django_epica_mail.retry import Failure, Kind, Scope
from tests.integration.admin.pages import client_of, html_of, text_in, url

PAGE, OPERATE = "emailtotal_changelist", "deliverygate_operate"

pytestmark = pytest.mark.usefixtures("site", "mid_hour")


@pytest.fixture
def operator() -> Client:
    """Log in a user who may operate the queue."""
    return client_of("view_emaillog", "operate_emaillog")


def shown(client: Client, **query: str) -> str:
    """Return the page without its markup, in one line."""
    return text_in(html_of(client, PAGE, **query))


def press(client: Client, do: str, **more: str) -> Any:
    """Post what a button of the page posts."""
    return client.post(url(OPERATE), {"do": do, **more})


@pytest.fixture
def count(travel: Any) -> Any:
    """Make the sweep count what has happened so far."""

    def run() -> None:
        travel(minutes=2)
        maintenance.dispatch()

    return run


def test_it_shows_whether_mail_flows_and_why_not(
    smtp, queue_mail, deliver, operator, travel
) -> None:
    queue_mail()
    assert "Mail flows." in shown(operator)
    smtp.refuse_connections()
    deliver()
    text = shown(operator)
    assert re.search(r"No mail flows: transport smtp: 1 waits since [\d:]+, ", text)
    assert "See them" in text
    assert "Try now" in text
    assert "This transport is out of order: smtp." in text


def test_it_shows_the_backlog_by_queue_and_transport(smtp, queue_mail, operator, travel) -> None:
    for _ in range(1234):
        queue_mail()
    queue_mail(queue="bulk_emails")
    travel(seconds=90)
    text = shown(operator)
    assert re.search(r"bulk_emails smtp 1 1 9\d s 0 0", text)
    assert re.search(r" emails smtp 1,234 1,234 9\d s 0 0", text)


def test_it_shows_what_was_sent_and_how_long_it_took(
    smtp, queue_mail, deliver, operator, count
) -> None:
    queue_mail()
    deliver()
    assert re.search(r"emails smtp 0 0 – 0 1 ", shown(operator)), "1 in the last minute"
    count()
    text = shown(operator)
    assert "Sent 1 Failed 0 Retried 0" in text
    assert re.search(r"half within.* emails smtp 1 \S+ m?s", text)


def test_a_failure_reason_links_to_the_mail_it_made_fail(
    smtp, queue_mail, deliver, operator, count
) -> None:
    smtp.inject(refuse("rcpt", 552, times=1))
    queue_mail(subject="Mail of 552")
    deliver()
    smtp.inject(refuse("rcpt", 451, times=1))
    exhausted = queue_mail(subject="Mail of 451")
    EmailLog.objects.filter(pk=exhausted.pk).update(max_retries=0)
    deliver()
    count()
    html = html_of(operator, PAGE, queue="emails")
    assert re.search(r"Refused for good</a></th><td[^>]*>552</td><td[^>]*>1<", html)
    links = re.findall(r'<a href="([^"]*emaillog/[^"]*failure_kind=permanent[^"]*)"', html)
    assert len(links) == 1
    listed = operator.get(links[0].replace("&amp;", "&"))
    assert listed.status_code == 200
    assert "Mail of 552" in listed.content.decode()
    assert "Mail of 451" not in listed.content.decode()


@pytest.mark.parametrize("period", ["24h", "7d", "30d", "90d", "", "nonsense"])
def test_period_and_filters_are_in_the_query_string(
    smtp, queue_mail, deliver, operator, count, travel, period
) -> None:
    queue_mail()
    deliver()
    count()
    if period in ("7d", "30d", "90d"):  # whole days, of which today is none
        assert "Sent 0 Failed" in shown(operator, period=period)
        travel(hours=24)
    assert "Sent 1 Failed" in shown(operator, period=period)
    assert "Sent 1 Failed" in shown(operator, period=period, queue="emails", transport="smtp")
    assert "Sent 0 Failed" in shown(operator, period=period, queue="bulk_emails")
    assert "Sent 0 Failed" in shown(operator, period=period, transport="other")


def test_each_chart_has_a_table_with_the_same_numbers(
    smtp, queue_mail, deliver, operator, count
) -> None:
    queue_mail()
    deliver()
    count()
    html = html_of(operator, PAGE)
    charts = re.findall(r"<figure.*?</figure>", html, re.DOTALL)
    assert len(charts) == 4
    assert [chart.count("None in this period.") for chart in charts] == [0, 1, 1, 0]
    for chart in (charts[0], charts[3]):
        told = re.findall(r"<title>(.*?): (.*?)</title>", chart)
        rows = re.findall(r'<tr><th scope="row">(.*?)</th><td[^>]*>(.*?)</td>', chart)
        assert told == rows
        assert len(rows) == 24
    assert [value for _, value in re.findall(r"<title>(.*?): (.*?)</title>", charts[0])][-1] == "1"


def test_chart_coordinates_are_numbers_in_every_language(
    smtp, queue_mail, deliver, operator, count, settings
) -> None:
    queue_mail()
    deliver()
    count()
    settings.LANGUAGE_CODE = "tr"
    with translation.override("tr"):
        html = html_of(operator, PAGE)
    charts = "".join(re.findall(r"<svg viewBox.*?</svg>", html, re.DOTALL))
    attributes = re.findall(r' (?:x|y|x1|x2|y1|y2|width|height)="([^"]*)"', charts)
    assert attributes
    assert all(re.fullmatch(r"\d+(\.\d+)?", value) for value in attributes)


def test_it_has_no_inline_scripts_or_styles(smtp, queue_mail, deliver, operator, count) -> None:
    queue_mail()
    deliver()
    count()
    html = html_of(operator, PAGE, workers="")
    ours = html[html.index('<div id="em-dashboard"') :]
    assert not re.search(r"<script|<style|\sstyle=|\son\w+=|javascript:", ours)
    assert not re.search(r"<script(?![^>]*\ssrc=)[^>]*>\s*[^<\s]", html)


def test_a_name_that_looks_like_markup_is_escaped(smtp, queue_mail, operator) -> None:
    queue_mail(queue="<script>x</script>")
    DeliveryGate.objects.create(scope="transport", name="smtp", outages=1, reason="<img src=x>")
    html = html_of(operator, PAGE, queue='"><script>')
    assert "<script>x" not in html
    assert "<img src=x>" not in html
    assert '"><script>' not in html


def test_the_dashboard_requires_permission_to_view_mail() -> None:
    assert Client().get(url(PAGE)).status_code == 302
    assert client_of("view_emaillog", is_staff=False).get(url(PAGE)).status_code == 302
    assert client_of("view_deliverygate").get(url(PAGE)).status_code == 403
    viewer = client_of("view_emaillog")
    assert viewer.get(url(PAGE)).status_code == 200
    assert "Resume" not in shown(viewer)
    assert "Pause" not in shown(viewer)


@pytest.mark.parametrize("permissions", [(), ("view_emaillog",), ("operate_emaillog",)])
def test_pausing_requires_permissions_to_view_and_operate(smtp, queue_mail, permissions) -> None:
    queue_mail()
    assert press(client_of(*permissions), "pause queue emails").status_code == 403
    assert press(Client(), "pause queue emails").status_code == 302
    assert not DeliveryGate.objects.filter(paused=True).exists()


def test_buttons_pause_and_resume_a_queue(smtp, queue_mail, deliver, operator) -> None:
    queue_mail()
    html = html_of(operator, PAGE, period="7d", queue="emails")
    to = re.search(r'name="next" value="([^"]*)"', html)
    assert to is not None
    back = press(operator, "pause queue emails", next=unescape(to[1]))
    assert back.status_code == 302
    assert back.url == url(PAGE) + "?period=7d&queue=emails"
    assert deliver() == 0
    assert "queue emails paused" in shown(operator)
    press(operator, "resume queue emails")
    assert deliver() == 1


def test_a_button_probes_a_transport_out_of_order_at_once(
    smtp, queue_mail, deliver, operator
) -> None:
    queue_mail()
    smtp.refuse_connections()
    deliver()
    smtp.listen_again()
    assert deliver() == 0, "the breaker is open"
    assert press(operator, "probe transport smtp").status_code == 302
    assert deliver() == 1
    assert gates.Gates("default").out_of_order() == []


def test_buttons_require_post_and_a_csrf_token(smtp) -> None:
    operator = client_of("view_emaillog", "operate_emaillog", enforce_csrf_checks=True)
    assert operator.get(url(OPERATE), {"do": "pause queue emails"}).status_code == 405
    assert press(operator, "pause queue emails").status_code == 403
    html = html_of(operator, PAGE)
    token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', html)
    assert token is not None
    pressed = press(operator, "pause queue emails", csrfmiddlewaretoken=token[1])
    assert pressed.status_code == 302


def test_workers_are_asked_only_on_request(operator, monkeypatch) -> None:
    asked: list[bool] = []

    def consumed() -> dict[str, list[str]]:
        asked.append(True)
        return {"emails@host": ["celery", "emails"]}

    monkeypatch.setattr(workers, "consumed", consumed)
    shown(operator)
    assert not asked
    html = html_of(operator, PAGE, workers="ask")
    assert 'data-refresh="0"' in html, "or it would ask again and again"
    assert "emails@host" in html
    assert "celery, emails" in html


def test_workers_that_do_not_answer_are_judged_by_what_they_did(
    operator, monkeypatch, smtp, queue_mail, deliver
) -> None:
    monkeypatch.setattr(workers, "consumed", dict)
    queue_mail()
    deliver()
    html = html_of(operator, PAGE, workers="ask")
    assert '<span class="em-badge">No worker answers.</span> The last attempt was' in html


def test_a_broker_that_is_down_is_reported(operator, monkeypatch) -> None:
    def consumed() -> dict[str, list[str]]:
        raise ConnectionError("redis://:secret@host")

    monkeypatch.setattr(workers, "consumed", consumed)
    text = shown(operator, workers="ask")
    assert "The broker cannot be asked for its workers (ConnectionError)." in text
    assert "secret" not in text


def test_the_index_of_the_app_links_to_it(operator) -> None:
    index = operator.get(reverse("admin:app_list", args=["epica_mail"])).content.decode()
    assert index.count(f'href="{url(PAGE)}"') >= 2, "the link above the list, and the one in it"


def test_slowed_domains_are_shown_with_why_and_what_waits(
    smtp, queue_mail, operator, travel
) -> None:
    queue_mail("a@gmail.example", subject="Waits")
    queue_mail("b@other.example", subject="Goes")
    assert "Slowed domains" not in shown(operator)
    travel(minutes=9)
    reply = f"4.7.28 <b>too</b> fast {'x' * 999}"
    failure = Failure(kind=Kind.THROTTLED, scope=Scope.DOMAIN, reply=reply)
    slowed_domains.complain("smtp", "gmail.example", failure, time.monotonic() - 9, "default")
    html = html_of(operator, PAGE)
    text = text_in(html)
    assert re.search(r"gmail\.example smtp 48\d 1 gmail\.example 9 min", text)
    assert "4.7.28 &lt;b&gt;too&lt;/b&gt; fast" in html
    assert len(max(text.split(), key=len)) < 200
    (link,) = re.findall(r'href="([^"]*slowed=gmail.example[^"]*)"', html)
    listed = text_in(operator.get(unescape(link)).content.decode())
    assert "Waits" in listed
    assert "Goes" not in listed


def test_the_number_of_queries_does_not_grow_with_the_mail(
    smtp, queue_mail, deliver, operator, count, django_assert_max_num_queries
) -> None:
    queue_mail()
    deliver()
    count()
    queue_mail()
    with django_assert_max_num_queries(38):
        operator.get(url(PAGE), {"period": "30d"})
    for _ in range(30):
        queue_mail()
    deliver()
    count()
    queue_mail()
    with django_assert_max_num_queries(38):
        operator.get(url(PAGE), {"period": "30d"})


def test_every_number_of_a_lane_lists_the_mail_it_counts(smtp, queue_mail, operator) -> None:
    queue_mail(subject="Due now")
    queue_mail(subject="Later", send_at=timezone.now() + timedelta(hours=1))
    html = html_of(operator, PAGE)
    links = dict(re.findall(r'href="([^"]*now=(\w+)[^"]*)"', html)[::-1])
    listed = {now: operator.get(unescape(link)).content.decode() for link, now in links.items()}
    assert listed.keys() == {"waiting", "due", "in_flight", "sent"}
    found = {now: ("Due now" in page, "Later" in page) for now, page in listed.items()}
    assert found == {
        "waiting": (True, True),
        "due": (True, False),
        "in_flight": (False, False),
        "sent": (False, False),
    }


def test_a_fresh_install_is_told_what_to_check(operator) -> None:
    html = html_of(operator, PAGE)
    assert "No mail yet." in html
    assert "<figure" not in html
    assert "A worker has to consume the queues" in html


def test_a_fresh_install_that_delivers_in_process_is_not_asked_for_a_worker(
    operator, settings, epica_mail
) -> None:
    settings.DEBUG = True
    epica_mail(DELIVER_IN_PROCESS=True)
    html = html_of(operator, PAGE)
    assert "no worker is needed" in html
    assert "has to" not in html.partition('class="em-steps"')[2].partition("</ol>")[0]
