"""What a package must tell of its tables for its mail to be moved."""

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
"""The packages whose mail can be moved, each described by the module of that name."""


class CannotImport(EpicaMailError):  # noqa: N818 - it says what is the case
    """Another package's mail cannot be moved as things are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """What is kept of a mail that another package is done with."""

    status: Status
    """``sent``, ``failed``, ``cancelled`` or ``suppressed``."""
    finished_at: datetime
    """When it came to its end."""
    reply: str = ""
    """What was said of it."""


class Source:
    """The tables of one package; ``Any`` stands for its models, which have no types."""

    package: str
    """The distribution's name, which begins each idempotency key."""
    app_label: str

    def queued(self) -> QuerySet[Any]:
        """Return the rows of mail that waits to be sent."""
        raise NotImplementedError

    def finished(self, since: datetime) -> QuerySet[Any]:
        """Return the rows of mail that came to its end since a time."""
        raise NotImplementedError

    def message(self, row: Any) -> EmailMessage:
        """Return the message of a row; raise whatever keeps it from being read."""
        raise NotImplementedError

    def options(self, row: Any) -> Mapping[str, Any]:
        """Return what the row says of priority, time and transport, as ``routing.Options``."""
        raise NotImplementedError

    def past(self, row: Any) -> Past:
        """Return what became of the mail of a finished row."""
        raise NotImplementedError

    def created_at(self, row: Any) -> datetime:
        """Return when the mail was handed to the package."""
        raise NotImplementedError

    def listed(self) -> Iterable[str]:
        """Return the addresses that the package sends nothing to, if it has a list of them."""
        return ()

    def mark(self, moved: Sequence[tuple[Any, EmailLog]]) -> None:
        """Write into the rows that the package is not to send them: ours are in their place."""
        raise NotImplementedError

    def holding_back(self) -> AbstractContextManager[None]:
        """Keep the package from sending meanwhile, where it offers a way."""
        return nullcontext()

    def key(self, row: Model) -> str:
        """Return the idempotency key of a row's mail: it is moved once, however often it is tried.

        It names package, table and row.
        """
        return f"{self.package}:{row._meta.model_name}:{row.pk}"

    def model(self, name: str) -> Any:
        """Return one of the package's models."""
        return apps.get_model(self.app_label, name)


def find(name: str, **options: Any) -> Source:
    """Return the source of one of ``NAMES``; ``options`` are for its own.

    Raises ``CannotImport`` if its app is not installed, or keeps its rows in another database.
    """
    module = import_module(f"django_epica_mail.importing.{name}")
    source: Source = module.Tables(**options)
    if not apps.is_installed(module.APP):
        raise CannotImport(
            f"{module.APP!r} is not in INSTALLED_APPS. Leave it there until its mail is moved."
        )
    ours, theirs = (router.db_for_write(model) for model in (EmailLog, source.queued().model))
    if ours != theirs:
        raise CannotImport(
            f"The mail of {source.package} is in the database {theirs!r} and ours in {ours!r}. It "
            "can be moved only within one database, in whose transactions it is in one place or "
            "the other."
        )
    return source


def aware(time: datetime) -> datetime:
    """Return a time with its time zone, on sites without ``USE_TZ`` too."""
    return timezone.make_aware(time) if timezone.is_naive(time) else time
