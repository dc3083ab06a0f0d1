"""Clients of users with certain permissions, and the admin pages that they open."""

from __future__ import annotations

import re
from typing import Any

from django.contrib.auth.models import Permission, User
from django.test import Client
from django.urls import reverse


def client_of(*permissions: str, is_staff: bool = True, **options: Any) -> Client:
    """Log in a new user with these permissions; ``options`` are those of ``Client``."""
    user = User.objects.create_user(f"user{User.objects.count()}", is_staff=is_staff)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    client = Client(**options)
    client.force_login(user)
    return client


def url(name: str, *args: Any) -> str:
    """Return the URL of an admin page, as in ``url("emaillog_change", mail.pk)``."""
    return reverse(f"admin:epica_mail_{name}", args=args)


def html_of(client: Client, name: str, *args: Any, **query: Any) -> str:
    """Open an admin page and return its HTML."""
    page = client.get(url(name, *args), query)
    assert page.status_code == 200, page.headers
    return page.content.decode()


def text_in(html: str) -> str:
    """Return HTML without its tags, in one line."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", html))
