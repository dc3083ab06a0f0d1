"""The URLs that the package serves on a site: ``include("django_epica_mail.urls")``."""

from __future__ import annotations

from django.urls import URLPattern, path

from django_epica_mail import views
from django_epica_mail.views import health, metrics

app_name = "epica_mail"

urlpatterns: list[URLPattern] = [
    path("open/<str:token>/", views.open_pixel, name="open"),
    path("click/<str:token>/", views.click, name="click"),
    path("unsubscribe/<str:token>/", views.unsubscribe, name="unsubscribe"),
    path("health/", health, name="health"),
    path("metrics/", metrics, name="metrics"),
]
