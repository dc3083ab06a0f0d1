"""The addresses of a site's own that the package serves: ``include("django_epica_mail.urls")``."""

from __future__ import annotations

from django.urls import URLPattern

app_name = "epica_mail"

urlpatterns: list[URLPattern] = []
