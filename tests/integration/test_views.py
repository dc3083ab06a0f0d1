"""The health page: a verdict for everybody, and details for those who may see them."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import DatabaseError
from django.test import Client, RequestFactory
from django.urls import include, path, reverse
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from devservers.smtp_faults import refuse
from django_epica_mail import maintenance, outbox, views
from django_epica_mail.models import EmailTotal, Suppression
from django_epica_mail.tracking import links

TOKEN = "a-token-of-the-tests"


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every visitor cause an examination, so that a test sees what it has just done."""
    monkeypatch.setattr(views, "ANONYMOUS_SECONDS", 0)


def test_a_flood_of_anonymous_visitors_examines_the_queue_once(
    monkeypatch: pytest.MonkeyPatch, django_assert_num_queries: Any
) -> None:
    monkeypatch.setattr(views, "ANONYMOUS_SECONDS", 5.0)
    monkeypatch.setattr(views, "_last_verdict", views._Verdict())
    ask()
    with django_assert_num_queries(0):
        assert {ask().status_code for _ in range(50)} == {200}
        assert ask("wrong-token-of-an-attacker").json() == {"status": "ok"}
    assert "checks" in ask(TOKEN).json(), "who may see the details gets them as they are now"


@pytest.fixture(autouse=True)
def site(settings: Any, epica_mail: Any, db: None) -> None:
    """Serve the package's pages on a site with log-ins."""
    settings.SESSION_ENGINE = "django.contrib.sessions.backends.signed_cookies"
    settings.MIDDLEWARE = [
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
    ]
    settings.ROOT_URLCONF = (path("mail/", include("django_epica_mail.urls")),)
    epica_mail(MONITORING_TOKEN=TOKEN)


def ask(token: str | None = None, client: Client | None = None, **given: Any) -> Any:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return (client or Client()).get(reverse("epica_mail:health"), given, headers=headers)


def found(token: str = TOKEN) -> dict[str, str]:
    """Return the status of each check by name."""
    checks = ask(token).json()["checks"]
    return {name: check["status"] for name, check in checks.items()}


def test_a_site_without_mail_is_healthy() -> None:
    response = ask()
    assert (response.status_code, response.json()) == (200, {"status": "ok"})
    assert "no-store" in response.headers["Cache-Control"]


def test_overdue_mail_fails_the_check_until_it_is_sent(smtp, queue_mail, deliver, travel) -> None:
    queue_mail()
    travel(minutes=6)
    maintenance.dispatch()
    response = ask()
    assert (response.status_code, response.json()) == (503, {"status": "failing"})
    assert found() == {
        "backlog": "failing",
        "worker": "failing",
        "beat": "ok",
        "breaker": "ok",
        "failures": "ok",
        "reputation": "ok",
    }
    deliver()
    assert ask().status_code == 200


def test_a_pause_is_no_failure(smtp, queue_mail, travel) -> None:
    queue_mail()
    outbox.pause(queue="emails")
    travel(minutes=6)
    maintenance.dispatch()
    assert ask().status_code == 200


def test_an_open_breaker_fails_the_check(smtp, queue_mail, deliver) -> None:
    queue_mail()
    smtp.refuse_connections()
    deliver()
    assert found()["breaker"] == "failing"


def test_many_failures_fail_the_check(smtp, queue_mail, deliver, travel) -> None:
    smtp.inject(refuse("rcpt"))
    for _ in range(10):
        queue_mail()
    deliver()
    travel(minutes=2)
    maintenance.dispatch()
    assert EmailTotal.objects.exists()
    assert found()["failures"] == "failing"


def test_missing_sweeps_fail_the_check(smtp, queue_mail, deliver, travel) -> None:
    queue_mail()
    deliver()
    maintenance.dispatch()
    assert found()["beat"] == "ok"
    travel(minutes=6)
    assert found()["beat"] == "failing"


@pytest.mark.parametrize("shown", [None, "wrong", "", TOKEN[:-1], TOKEN + "x"])
def test_without_the_right_token_there_are_no_details(shown) -> None:
    assert ask(shown).json() == {"status": "ok"}


def test_a_token_in_the_url_is_ignored() -> None:
    assert ask(token=None, MONITORING_TOKEN=TOKEN).json() == {"status": "ok"}


def test_no_token_is_valid_if_none_is_set(epica_mail) -> None:
    epica_mail(MONITORING_TOKEN=None)
    assert ask("None").json() == {"status": "ok"}


@pytest.mark.parametrize(
    ("is_staff", "is_active", "sees"),
    [(True, True, True), (False, True, False), (True, False, False)],
)
def test_of_logged_in_users_only_active_staff_see_details(is_staff, is_active, sees) -> None:
    client = Client()
    client.force_login(User.objects.create_user("she", is_staff=is_staff, is_active=is_active))
    assert ("checks" in ask(client=client).json()) is sees


def test_a_site_without_log_ins_is_checked_too(settings) -> None:
    settings.MIDDLEWARE = []
    assert ask().json() == {"status": "ok"}
    assert "checks" in ask(TOKEN).json()


def test_a_database_that_is_down_is_reported(monkeypatch) -> None:
    def fail() -> None:
        raise DatabaseError("secret host name")

    monkeypatch.setattr("django_epica_mail.views.examine", fail)
    assert ask().json() == {"status": "failing"}
    response = ask(TOKEN)
    assert response.status_code == 503
    assert response.json()["checks"]["database"]["status"] == "failing"
    assert "secret" not in response.content.decode()


def test_the_page_is_read_only() -> None:
    assert Client().post(reverse("epica_mail:health")).status_code == 405


def test_details_contain_no_address_and_no_servers_reply(smtp, queue_mail, deliver) -> None:
    smtp.inject(refuse("mail", 535, "5.7.8 no such user secret@example.com"))
    queue_mail("secret@example.com", subject="secret")
    deliver()
    assert "secret" not in ask(TOKEN).content.decode()


def test_the_number_of_queries_does_not_depend_on_the_mail(
    smtp, queue_mail, django_assert_num_queries
) -> None:
    for _ in range(3):
        queue_mail()
    with django_assert_num_queries(16):
        ask()
    for _ in range(20):
        queue_mail()
    with django_assert_num_queries(16):
        ask()


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        ("203.0.113.7", "203.0.113.7"),
        ("203.0.113.7:4711", "203.0.113.7"),
        ("2001:DB8::1", "2001:db8::1"),
        ("[2001:db8::1]:443", "2001:db8::1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("fe80::1%eth0", "fe80::1"),
        ("::ffff:203.0.113.7", "203.0.113.7"),
        ("203.0.113.7, 10.0.0.1", "203.0.113.7"),
        (" 203.0.113.7:80,10.0.0.1:80", "203.0.113.7"),
        ("unix:", None),
        ("unix:/run/site.sock", None),
        ("", None),
        ("unknown", None),
        ("203.0.113.7\0", None),
        ("\ud800", None),
        ("1" * 100_000, None),
        ("999.1.1.1", None),
    ],
)
def test_any_client_address_leaves_the_visitor_his_page(
    queue_mail, epica_mail, given, stored
) -> None:
    epica_mail(STORE_IP=True, BASE_URL="https://example.com")
    mail = queue_mail()
    pixel = links.open_url(mail.pk).removeprefix("https://example.com")
    agent = {"User-Agent": "Mozilla/5.0 (X11; Linux x86_64) Gecko"}
    assert Client(REMOTE_ADDR=given, headers=agent).get(pixel).status_code == 200
    assert mail.events.get().ip == stored


@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.text() | st.ip_addresses().map(str) | st.from_regex(r"\[?[0-9a-f:.%]*\]?(:[0-9]+)?"))
def test_a_client_address_is_one_or_none(text: str) -> None:
    request = RequestFactory().get("/", REMOTE_ADDR=text)
    found = views.client_ip(request)
    assert found is None or str(ipaddress.ip_address(found)) == found


@pytest.fixture
def behind_a_login(settings: Any) -> None:
    login = "django.contrib.auth.middleware.LoginRequiredMiddleware"
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, login]


def test_all_pages_are_open_on_a_site_behind_a_login(
    behind_a_login, queue_mail, epica_mail
) -> None:
    site = "https://example.com"
    epica_mail(BASE_URL=site)
    mail = queue_mail()
    client = Client()
    for link, status in (
        (links.open_url(mail.pk), 200),
        (links.click_url(mail.pk, f"{site}/offer"), 302),
        (links.unsubscribe_url("to@example.com"), 200),
    ):
        answer = client.get(link.removeprefix(site))
        assert answer.status_code == status
        assert answer.headers.get("Location", f"{site}/offer") == f"{site}/offer"
    one_click = client.post(
        links.unsubscribe_url("to@example.com").removeprefix(site),
        {"List-Unsubscribe": "One-Click"},
    )
    assert one_click.status_code == 200
    assert Suppression.objects.count() == 1
    assert ask().status_code == 200
    assert ask(TOKEN).json()["checks"]
    assert client.get(reverse("epica_mail:metrics")).status_code == 401
