"""What keeps visitors from the public addresses, as the doctor finds it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import include, path

from django_epica_mail.models import EmailEvent, Suppression
from django_epica_mail.monitoring import doctor, public_pages

pytestmark = pytest.mark.django_db
HERE = __name__
GetResponse = Callable[[Any], HttpResponse]


def login_wall(get_response: GetResponse) -> GetResponse:
    """A middleware of many sites: whoever is not logged in is sent to the log-in."""

    def middleware(request: Any) -> HttpResponse:
        if not request.user.is_authenticated:
            return HttpResponseRedirect(f"/login/?next={request.path}")
        return get_response(request)

    return middleware


def post_wall(get_response: GetResponse) -> GetResponse:
    """A middleware that lets nobody post."""

    def middleware(request: Any) -> HttpResponse:
        if request.method == "POST":
            raise PermissionDenied
        return get_response(request)

    return middleware


@pytest.fixture(autouse=True)
def site(settings: Any, epica_mail: Any) -> None:
    settings.ALLOWED_HOSTS = ["www.example.com"]
    settings.SECURE_SSL_REDIRECT = True
    settings.SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
    settings.MIDDLEWARE = [
        "django.middleware.security.SecurityMiddleware",
        *settings.MIDDLEWARE,
        "django.contrib.auth.middleware.LoginRequiredMiddleware",
    ]
    settings.ROOT_URLCONF = (path("mail/", include("django_epica_mail.urls")),)
    epica_mail(BASE_URL="https://www.example.com", SUPPRESSION_KEYS=["a key"])


def test_a_correct_site_has_no_obstacle_and_is_left_as_it_was(caplog) -> None:
    assert public_pages.examine() == []
    assert not EmailEvent.objects.exists()
    assert not Suppression.objects.exists()
    assert [it for it in caplog.records if it.name.startswith("django.")] == []
    assert not logging.getLogger("django.request").disabled


def test_a_wall_before_all_pages_is_named_with_what_it_answers(settings) -> None:
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, f"{HERE}.login_wall", f"{HERE}.post_wall"]
    found = public_pages.examine()
    assert [it.request for it in found] == [
        "GET /mail/health/",
        "GET /mail/metrics/",
        "GET /mail/open/.../",
        "GET /mail/click/.../",
        "GET /mail/unsubscribe/.../",
        "POST /mail/unsubscribe/.../",
    ]
    assert {it.cause for it in found} == {f"{HERE}.login_wall"}
    assert {it.answer for it in found} == {"302 (to /login/)"}
    finding = next(it for it in doctor.examine() if it.id == "public-page")
    assert finding.level == "error"
    assert f"{HERE}.login_wall answers 302 (to /login/)" in finding.text


def test_a_wall_before_one_method_is_found_too(settings) -> None:
    settings.MIDDLEWARE = [f"{HERE}.post_wall", *settings.MIDDLEWARE]
    (found,) = public_pages.examine()
    assert (found.request, found.cause) == ("POST /mail/unsubscribe/.../", f"{HERE}.post_wall")
    assert found.answer == "403"


def test_a_host_that_the_site_does_not_serve_is_found(settings, epica_mail) -> None:
    common = "django.middleware.common.CommonMiddleware"
    settings.MIDDLEWARE = [common, *settings.MIDDLEWARE]
    epica_mail(BASE_URL="https://mail.example.com")
    assert {(it.answer, it.cause) for it in public_pages.examine()} == {("400", common)}


def test_a_view_that_comes_first_is_found(settings) -> None:
    def shop(request: HttpRequest, page: str) -> HttpResponse:
        return HttpResponse(page)

    settings.MIDDLEWARE = settings.MIDDLEWARE[:-1]
    settings.ROOT_URLCONF = (
        path("<path:page>", shop),
        path("mail/", include("django_epica_mail.urls")),
    )
    found = public_pages.examine()
    assert [it.cause for it in found] == [""] * 6
    assert [it.answer for it in found] == ["200"] * 5 + ["403"]


def test_only_what_the_site_routes_is_asked(settings, epica_mail) -> None:
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, f"{HERE}.login_wall"]
    epica_mail(BASE_URL=None)
    assert [it.request for it in public_pages.examine()] == [
        "GET /mail/health/",
        "GET /mail/metrics/",
    ]
    settings.ROOT_URLCONF = ()
    assert public_pages.examine() == []
