"""The URLs of the example shop and of anymail's webhooks."""

from __future__ import annotations

from django.urls import include, path

from shopsite.urls import urlpatterns as _shop

urlpatterns = [*_shop, path("anymail/", include("anymail.urls"))]
