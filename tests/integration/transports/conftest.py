"""A token authority and an SMTP server that asks it, for the tests of OAuth."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import django
import pytest

from devservers.authority import TokenAuthority
from devservers.smtp import SMTPServer
from django_epica_mail.transports import connection, oauth

MAILBOX = "shop@example.com"


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TokenAuthority]:
    """Run an authority whose certificate ``requests`` trusts."""
    with TokenAuthority(tmp_path, MAILBOX) as running:
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(running.certificate))
        yield running


@pytest.fixture
def mailbox(authority: TokenAuthority) -> Iterator[SMTPServer]:
    """Run an SMTP server that accepts the authority's tokens."""
    with SMTPServer(accepts_token=authority.accepts) as server:
        yield server


@pytest.fixture
def use_options(settings: Any, epica_mail: Callable[..., None], db: None) -> Iterator[Any]:
    """Set the OPTIONS of the transport ``smtp``, and optionally its BACKEND."""

    def use(backend: str = "django.core.mail.backends.smtp.EmailBackend", **options: Any) -> None:
        connection.close_connections()
        spec = {"BACKEND": backend, "OPTIONS": options}
        if django.VERSION >= (6, 1):
            settings.MAILERS = {**settings.MAILERS, "smtp": spec}
        else:
            epica_mail(TRANSPORTS={"smtp": spec})

    epica_mail(REAL_TRANSPORTS_IN_TESTS=True, SEND_TIMEOUT=5)
    oauth._forget_sources()
    yield use
    connection.close_connections()
    oauth._forget_sources()
