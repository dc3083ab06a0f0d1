"""The addresses of a site's own that the package serves: ``include("django_epica_mail.urls")``."""

from __future__ import annotations

from django.urls import URLPattern, path

from django_epica_mail.views import tracking, unsubscribe

app_name = "epica_mail"

urlpatterns: list[URLPattern] = [
    path("open/<str:token>/", tracking.open_, name="open"),
    path("click/<str:token>/", tracking.click, name="click"),
    path("unsubscribe/<str:token>/", unsubscribe.unsubscribe, name="unsubscribe"),
]
"""The pages that the package serves outside the admin, one module for each purpose."""
