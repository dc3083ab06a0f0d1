"""The addresses of a site's own that the package serves: ``include("django_epica_mail.urls")``."""

from __future__ import annotations

from django.urls import URLPattern, path

from django_epica_mail.views import tracking, unsubscribe
from django_epica_mail.views.health import health
from django_epica_mail.views.metrics import metrics

app_name = "epica_mail"

urlpatterns: list[URLPattern] = [
    path("open/<str:token>/", tracking.open_, name="open"),
    path("click/<str:token>/", tracking.click, name="click"),
    path("unsubscribe/<str:token>/", unsubscribe.unsubscribe, name="unsubscribe"),
    path("health/", health, name="health"),
    path("metrics/", metrics, name="metrics"),
]
