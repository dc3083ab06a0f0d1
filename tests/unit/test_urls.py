"""The URLs that a site includes, in links of mail and for monitoring."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.core import signing
from django.http import Http404
from django.urls import Resolver404, include, path, resolve, reverse

from django_epica_mail import views

LINKS = {"open": views.open_pixel, "click": views.click, "unsubscribe": views.unsubscribe}
MONITORING = {"health": views.health, "metrics": views.metrics}


@pytest.fixture(autouse=True)
def _site(settings: Any) -> None:
    """Include the URLs as the documentation says."""
    settings.ROOT_URLCONF = (path("mail/", include("django_epica_mail.urls")),)


@pytest.mark.parametrize(("name", "view"), MONITORING.items())
def test_monitoring_has_a_fixed_url(name: str, view: Callable[..., Any]) -> None:
    assert reverse(f"epica_mail:{name}") == f"/mail/{name}/"
    assert resolve(f"/mail/{name}/").func is view


@pytest.mark.parametrize(("name", "view"), LINKS.items())
def test_a_link_contains_a_signed_token_unchanged(name: str, view: Callable[..., Any]) -> None:
    token = signing.dumps({"mail": 7, "url": "https://example.com/?a=1&b=ü"}, compress=True)
    url = reverse(f"epica_mail:{name}", args=[token])
    assert url == f"/mail/{name}/{token}/"
    found = resolve(url)
    assert found.func is view
    assert found.kwargs == {"token": token}


@pytest.mark.parametrize("name", LINKS)
@pytest.mark.parametrize("tail", ["", "a/b/", "token"])
def test_a_url_without_exactly_one_token_is_not_found(name: str, tail: str) -> None:
    with pytest.raises(Resolver404):
        resolve(f"/mail/{name}/{tail}")


@pytest.mark.parametrize("name", ["open", "click"])
def test_a_forged_token_is_answered_without_a_database(name: str, rf: Any) -> None:
    url = f"/mail/{name}/forged/"
    found = resolve(url)
    try:
        status = found.func(rf.get(url), **found.kwargs).status_code
    except Http404:
        status = 404
    assert status in (200, 404)
