"""The addresses of a site's own that the package serves: ``include("django_epica_mail.urls")``."""

from __future__ import annotations

from django.urls import URLPattern, path

from django_epica_mail.views import unsubscribe

app_name = "epica_mail"

urlpatterns: list[URLPattern] = [
    path("unsubscribe/<str:token>/", unsubscribe.unsubscribe, name="unsubscribe"),
]
"""The pages that the package serves outside the admin, one module for each purpose."""
