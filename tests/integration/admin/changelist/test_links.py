"""Addresses of the list of e-mails: intervals, and exactly the e-mails of one reason."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest
from django.contrib import admin
from django.contrib.admin import AdminSite
from django.http import QueryDict
from django.urls import path
from django.utils import timezone as django_timezone
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.rows import template
from django_epica_mail.admin.changelist import links
from django_epica_mail.lifecycle import Status
from django_epica_mail.models import EmailLog
from django_epica_mail.retry import Kind

days = {"min_value": datetime(1990, 1, 1), "max_value": datetime(9998, 12, 1)}
local = st.datetimes(timezones=st.timezones(), **days)
# Moments that a clock change repeats or skips equal none in another time zone.
moments = local.map(lambda moment: moment.astimezone(timezone.utc))


@given(since=st.none() | moments, until=st.none() | moments)
def test_an_interval_is_read_as_it_was_written(since, until) -> None:
    wanted = None if since is until is None else (since, until)
    assert links.bounds(links.interval(since, until)) == wanted


@given(text=st.text(max_size=40))
def test_any_text_is_an_interval_or_none(text) -> None:
    assert links.bounds(text) is None or text.count("/") == 1


EDGES = ["0001-01-01T00:00:00Z/..", "../9999-12-31T23:59:59Z"]


@pytest.mark.parametrize(
    "text", ["", "/", "../..", "2026-01-01/..", "x/..", "2026-01-01T00:00:00", *EDGES]
)
def test_what_is_no_interval_has_no_bounds(text) -> None:
    assert links.bounds(text) is None


def test_filters_without_a_value_are_left_out(site) -> None:
    assert links.emails_url(admin.site) == "/admin/epica_mail/emaillog/"
    failed = links.emails_url(admin.site, status="failed", queue="")
    assert failed == "/admin/epica_mail/emaillog/?status=failed"


def failed(subject: str, *, code: int | None, ended: datetime, kind: Kind = Kind.PERMANENT) -> None:
    """Store an e-mail that failed."""
    mail = template(Status.FAILED, kind=kind, finished=timedelta())
    EmailLog.objects.filter(pk=mail.pk).update(
        subject=subject, failure_code=code, finished_at=ended, failure_kind=kind
    )


def test_a_reason_leads_to_exactly_its_mails_by_kind_code_and_end(listed) -> None:
    now = django_timezone.now()
    failed("wanted", code=554, ended=now)
    failed("other code", code=550, ended=now)
    failed("no code", code=None, ended=now)
    failed("other kind", code=554, ended=now, kind=Kind.TRANSIENT)
    failed("ended before", code=554, ended=now - timedelta(hours=3))

    def of(query: str) -> list[str]:
        return listed(**QueryDict(query).dict())

    assert of(links.failures("permanent", 554, since="hour")) == ["wanted"]
    assert of(links.failures("permanent", 0, since="hour")) == ["no code"]
    assert of(links.failures("transient", 554, since="hour")) == ["other kind"]
    since, until = now - timedelta(hours=4), now - timedelta(hours=2)
    assert of(links.failures("permanent", 554, since=since, until=until)) == ["ended before"]
    assert sorted(of(links.failures("permanent", 554, since=since))) == ["ended before", "wanted"]
    assert of(links.failures("permanent", 554, since="hour", queue="no such queue")) == []


def test_moments_are_written_in_utc() -> None:
    moment = datetime(2026, 1, 1, 12, tzinfo=timezone(timedelta(hours=3)))
    assert links.interval(moment) == "2026-01-01T09:00:00Z/.."


@pytest.mark.parametrize("zone", ["Pacific/Kiritimati", "America/New_York"])
@pytest.mark.parametrize("text", EDGES)
def test_the_edges_of_the_calendar_are_no_error(listed, settings, text, zone) -> None:
    settings.TIME_ZONE = zone
    assert listed(ended=text) == []


def test_pages_link_to_each_other_in_the_admin_site_they_are_in(
    superuser, letter, settings
) -> None:
    office = AdminSite(name="backoffice")
    for model, model_admin in list(admin.site._registry.items()):
        if model._meta.app_label == "epica_mail":
            office.register(model, type(model_admin))
    without_mail = AdminSite(name="admin")
    settings.ROOT_URLCONF = (path("admin/", without_mail.urls), path("offices/", office.urls))
    base = "/offices/epica_mail"
    mail_page = f"{base}/emaillog/{letter.pk}/change/"
    assert f'href="{mail_page}"' in superuser.get(f"{base}/emaillog/").content.decode()
    assert f"{base}/emaillog/?q=ayse" in superuser.get(mail_page).content.decode()
    paused = superuser.post(f"{base}/deliverygate/operate/", {"do": "pause queue emails"})
    assert paused.headers["Location"] == f"{base}/deliverygate/"
