"""The dashboard: what flows and what does not, for those who may see it, and buttons for fewer."""

from __future__ import annotations

import re
from html import unescape
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.test import Client
from django.urls import reverse
from django.utils import translation

from devservers.smtp_faults import refuse
from django_epica_mail import maintenance
from django_epica_mail.broker import workers
from django_epica_mail.delivery import gates
from django_epica_mail.models import DeliveryGate, EmailLog

PAGE = "admin:epica_mail_emailtotal_changelist"
OPERATE = "admin:epica_mail_deliverygate_operate"


pytestmark = pytest.mark.usefixtures("site", "mid_hour")


def browser_of(*permissions: str, is_staff: bool = True, **options: Any) -> Client:
    """Return the browser of a person with permissions."""
    user = User.objects.create_user(f"user{User.objects.count()}", is_staff=is_staff)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    client = Client(**options)
    client.force_login(user)
    return client


@pytest.fixture
def browser() -> Client:
    """Return the browser of an operator."""
    return browser_of("view_emaillog", "operate_emaillog")


def shown(browser: Client, **query: str) -> str:
    """Return the page without its markup, in one line."""
    html = browser.get(reverse(PAGE), query).content.decode()
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", html))


def press(browser: Client, do: str, **more: str) -> Any:
    return browser.post(reverse(OPERATE), {"do": do, **more})


@pytest.fixture
def count(travel: Any) -> Any:
    """Let the sweep count what has happened until now."""

    def run() -> None:
        travel(minutes=2)
        maintenance.dispatch()

    return run


def test_it_says_that_mail_flows_or_what_keeps_it_from_flowing(
    smtp, queue_mail, deliver, browser, travel
) -> None:
    queue_mail()
    assert "Mail flows." in shown(browser)
    smtp.refuse_connections()
    deliver()
    text = shown(browser)
    assert "Something keeps mail from flowing." in text
    assert "This transport is out of order: smtp." in text


def test_it_tells_what_waits_by_queue_and_transport(smtp, queue_mail, browser, travel) -> None:
    for _ in range(1234):
        queue_mail()
    queue_mail(queue="bulk_emails")
    travel(seconds=90)
    text = shown(browser)
    assert re.search(r"bulk_emails smtp 1 1 9\d s 0 0", text)
    assert re.search(r" emails smtp 1,234 1,234 9\d s 0 0", text)


def test_it_tells_what_was_sent_and_how_long_it_took(
    smtp, queue_mail, deliver, browser, count
) -> None:
    queue_mail()
    deliver()
    assert re.search(r"emails smtp 0 0 – 0 1 ", shown(browser)), "1 in the last minute"
    count()
    text = shown(browser)
    assert "Sent 1 Failed 0 Retried 0" in text
    assert re.search(r"half within.* emails smtp 1 \S+ m?s", text)


def test_each_reason_of_failure_leads_to_the_mails_that_failed_so(
    smtp, queue_mail, deliver, browser, count
) -> None:
    smtp.inject(refuse("rcpt", 552, times=1))
    queue_mail(subject="Mail of 552")
    deliver()
    smtp.inject(refuse("rcpt", 451, times=1))
    retried_no_more = queue_mail(subject="Mail of 451")
    EmailLog.objects.filter(pk=retried_no_more.pk).update(max_retries=0)
    deliver()
    count()
    html = browser.get(reverse(PAGE), {"queue": "emails"}).content.decode()
    assert re.search(r"Refused for good</a></th><td[^>]*>552</td><td[^>]*>1<", html)
    links = re.findall(r'<a href="([^"]*emaillog/[^"]*failure_kind=permanent[^"]*)"', html)
    assert len(links) == 1
    listed = browser.get(links[0].replace("&amp;", "&"))
    assert listed.status_code == 200
    assert "Mail of 552" in listed.content.decode()
    assert "Mail of 451" not in listed.content.decode()


@pytest.mark.parametrize("period", ["24h", "7d", "30d", "90d", "", "nonsense"])
def test_period_and_filters_stand_in_the_address(
    smtp, queue_mail, deliver, browser, count, period
) -> None:
    queue_mail()
    deliver()
    count()
    assert "Sent 1 Failed" in shown(browser, period=period)
    assert "Sent 1 Failed" in shown(browser, period=period, queue="emails", transport="smtp")
    assert "Sent 0 Failed" in shown(browser, period=period, queue="bulk_emails")
    assert "Sent 0 Failed" in shown(browser, period=period, transport="other")


def test_beside_each_chart_stands_a_table_with_the_same_numbers(
    smtp, queue_mail, deliver, browser, count
) -> None:
    queue_mail()
    deliver()
    count()
    html = browser.get(reverse(PAGE)).content.decode()
    charts = re.findall(r"<figure.*?</figure>", html, re.DOTALL)
    assert len(charts) == 4
    for chart in charts:
        told = re.findall(r"<title>(.*?): (.*?)</title>", chart)
        rows = re.findall(r'<tr><th scope="row">(.*?)</th><td[^>]*>(.*?)</td>', chart)
        assert told == rows
        assert len(rows) == 24
    assert [value for _, value in re.findall(r"<title>(.*?): (.*?)</title>", charts[0])][-1] == "1"


def test_numbers_of_a_chart_are_numbers_in_every_language(
    smtp, queue_mail, deliver, browser, count, settings
) -> None:
    queue_mail()
    deliver()
    count()
    settings.LANGUAGE_CODE = "tr"
    with translation.override("tr"):
        html = browser.get(reverse(PAGE)).content.decode()
    charts = "".join(re.findall(r"<svg viewBox.*?</svg>", html, re.DOTALL))
    attributes = re.findall(r' (?:x|y|x1|x2|y1|y2|width|height)="([^"]*)"', charts)
    assert attributes
    assert all(re.fullmatch(r"\d+(\.\d+)?", value) for value in attributes)


def test_it_needs_neither_inline_scripts_nor_inline_styles(
    smtp, queue_mail, deliver, browser, count
) -> None:
    queue_mail()
    deliver()
    count()
    html = browser.get(reverse(PAGE), {"workers": ""}).content.decode()
    ours = html[html.index('<div id="em-dashboard"') :]
    assert not re.search(r"<script|<style|\sstyle=|\son\w+=|javascript:", ours)
    assert not re.search(r"<script(?![^>]*\ssrc=)[^>]*>\s*[^<\s]", html)


def test_a_name_that_looks_like_markup_is_text(smtp, queue_mail, browser) -> None:
    queue_mail(queue="<script>x</script>")
    DeliveryGate.objects.create(scope="transport", name="smtp", outages=1, reason="<img src=x>")
    html = browser.get(reverse(PAGE), {"queue": '"><script>'}).content.decode()
    assert "<script>x" not in html
    assert "<img src=x>" not in html
    assert '"><script>' not in html


def test_who_may_not_see_mail_sees_no_dashboard() -> None:
    assert Client().get(reverse(PAGE)).status_code == 302
    assert browser_of("view_emaillog", is_staff=False).get(reverse(PAGE)).status_code == 302
    assert browser_of("view_deliverygate").get(reverse(PAGE)).status_code == 403
    viewer = browser_of("view_emaillog")
    assert viewer.get(reverse(PAGE)).status_code == 200
    assert "Resume" not in shown(viewer)
    assert "Pause" not in shown(viewer)


@pytest.mark.parametrize("permissions", [(), ("view_emaillog",), ("operate_emaillog",)])
def test_who_may_only_look_stops_nothing(smtp, queue_mail, permissions) -> None:
    queue_mail()
    assert press(browser_of(*permissions), "pause queue emails").status_code == 403
    assert press(Client(), "pause queue emails").status_code == 302
    assert not DeliveryGate.objects.filter(paused=True).exists()


def test_a_button_pauses_and_another_resumes(smtp, queue_mail, deliver, browser) -> None:
    queue_mail()
    html = browser.get(reverse(PAGE), {"period": "7d", "queue": "emails"}).content.decode()
    to = re.search(r'name="next" value="([^"]*)"', html)
    assert to is not None
    back = press(browser, "pause queue emails", next=unescape(to[1]))
    assert back.status_code == 302
    assert back.url == reverse(PAGE) + "?period=7d&queue=emails"
    assert deliver() == 0
    assert "queue emails paused" in shown(browser)
    press(browser, "resume queue emails")
    assert deliver() == 1


def test_a_transport_out_of_order_is_tried_at_once_when_asked_to(
    smtp, queue_mail, deliver, browser
) -> None:
    queue_mail()
    smtp.refuse_connections()
    deliver()
    smtp.listen_again()
    assert deliver() == 0, "the breaker is open"
    assert press(browser, "probe transport smtp").status_code == 302
    assert deliver() == 1
    assert gates.Gates("default").out_of_order() == []


def test_buttons_work_by_a_post_from_the_page_itself_alone(smtp) -> None:
    browser = browser_of("view_emaillog", "operate_emaillog", enforce_csrf_checks=True)
    assert browser.get(reverse(OPERATE), {"do": "pause queue emails"}).status_code == 405
    assert press(browser, "pause queue emails").status_code == 403
    html = browser.get(reverse(PAGE)).content.decode()
    token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', html)
    assert token is not None
    pressed = press(browser, "pause queue emails", csrfmiddlewaretoken=token[1])
    assert pressed.status_code == 302


def test_workers_are_asked_on_request_only(browser, monkeypatch) -> None:
    asked: list[bool] = []

    def consumed() -> dict[str, list[str]]:
        asked.append(True)
        return {"emails@host": ["celery", "emails"]}

    monkeypatch.setattr(workers, "consumed", consumed)
    shown(browser)
    assert not asked
    html = browser.get(reverse(PAGE), {"workers": "ask"}).content.decode()
    assert 'data-refresh="0"' in html, "or it would ask again and again"
    assert "emails@host" in html
    assert "celery, emails" in html


def test_a_broker_that_is_down_is_said(browser, monkeypatch) -> None:
    def consumed() -> dict[str, list[str]]:
        raise ConnectionError("redis://:secret@host")

    monkeypatch.setattr(workers, "consumed", consumed)
    text = shown(browser, workers="ask")
    assert "The broker cannot be asked for its workers (ConnectionError)." in text
    assert "secret" not in text


def test_the_list_of_the_app_leads_to_it(browser) -> None:
    index = browser.get(reverse("admin:app_list", args=["epica_mail"])).content.decode()
    assert index.count(f'href="{reverse(PAGE)}"') >= 2, "the link above, and the list's"


def test_it_costs_the_same_for_one_mail_and_for_many(
    smtp, queue_mail, deliver, browser, count, django_assert_max_num_queries
) -> None:
    queue_mail()
    deliver()
    count()
    queue_mail()
    with django_assert_max_num_queries(37):
        browser.get(reverse(PAGE), {"period": "30d"})
    for _ in range(30):
        queue_mail()
    deliver()
    count()
    queue_mail()
    with django_assert_max_num_queries(37):
        browser.get(reverse(PAGE), {"period": "30d"})
