"""Defines ``Source``, the interface to the tables of a package whose mail is moved."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import datetime
from importlib import import_module
from typing import Any

from django.apps import apps
from django.core.mail import EmailMessage
from django.db import router
from django.db.models import Model, QuerySet
from django.utils import timezone

from django_epica_mail.exceptions import EpicaMailError
from django_epica_mail.lifecycle import Status
from django_epica_mail.models import EmailLog

SOURCES = ("post_office", "yubin", "mailer")
"""The packages whose mail can be moved; the module of that name describes each."""


class CannotImport(EpicaMailError):  # noqa: N818
    """Another package's mail cannot be moved, for a reason the site can change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """What is known of a mail that another package has finished."""

    status: Status
    """``sent``, ``failed``, ``cancelled`` or ``suppressed``."""
    finished_at: datetime
    """When it reached that status."""
    reply: str = ""
    """The server's reply, or the package's own note."""


class Source:
    """The tables of one package. Its rows are ``Any``, because its models have no types."""

    package: str
    """The distribution's name, the first part of each idempotency key."""
    app_label: str

    def queued(self) -> QuerySet[Any]:
        """Return the rows of mail waiting to be sent."""
        raise NotImplementedError

    def finished(self, since: datetime) -> QuerySet[Any]:
        """Return the rows of mail finished since a time."""
        raise NotImplementedError

    def message(self, row: Any) -> EmailMessage:
        """Return the message of a row; raise any exception if it cannot be read."""
        raise NotImplementedError

    def options(self, row: Any) -> Mapping[str, Any]:
        """Return the row's priority, times and transport, named as in ``routing.Options``."""
        raise NotImplementedError

    def past(self, row: Any) -> Past:
        """Return what became of a finished row's mail."""
        raise NotImplementedError

    def created_at(self, row: Any) -> datetime:
        """Return when the mail was handed to the package."""
        raise NotImplementedError

    def listed(self) -> Iterable[str]:
        """Return the addresses the package never sends to, if it keeps such a list."""
        return ()

    def mark(self, moved: Sequence[tuple[Any, EmailLog]]) -> None:
        """Change the rows so that the package does not send them; our rows replace them."""
        raise NotImplementedError

    def holding_back(self) -> AbstractContextManager[None]:
        """Prevent the package from sending meanwhile, if it offers a way."""
        return nullcontext()

    def key(self, row: Model) -> str:
        """Return the idempotency key of a row's mail, made of package, table and primary key.

        Because of it a mail is moved once, however often the import is repeated.
        """
        return f"{self.package}:{row._meta.model_name}:{row.pk}"

    def rows(self, name: str) -> Any:
        """Return the manager of one of the package's models, of the database it is written to."""
        model: Any = apps.get_model(self.app_label, name)
        return model.objects.db_manager(router.db_for_write(model))


def find(name: str, **options: Any) -> Source:
    """Return the source named by one of ``SOURCES``, created with ``options``.

    Raises ``CannotImport`` if its app is not installed or keeps its rows in another database.
    """
    module = import_module(f"django_epica_mail.management.importers.{name}")
    source: Source = module.Tables(**options)
    if not apps.is_installed(module.APP):
        raise CannotImport(
            f"{module.APP!r} is not in INSTALLED_APPS. Keep it there until its mail is moved."
        )
    ours, theirs = (router.db_for_write(model) for model in (EmailLog, source.queued().model))
    if ours != theirs:
        raise CannotImport(
            f"The mail of {source.package} is in the database {theirs!r}, ours is in {ours!r}. "
            "Mail can be moved only within one database, because one transaction must cover both "
            "tables."
        )
    return source


def aware(time: datetime) -> datetime:
    """Return a time with a time zone, also on sites without ``USE_TZ``."""
    return timezone.make_aware(time) if timezone.is_naive(time) else time
