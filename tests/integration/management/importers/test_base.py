"""Which sources can be found, and what each of them inherits."""

from __future__ import annotations

import sys
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace
from typing import Any

import pytest
from django.contrib.auth.models import User

from django_epica_mail.management import importers
from django_epica_mail.management.importers.base import SOURCES, CannotImport, Source, aware
from tests.integration.management.importers.outside import Outside, OutsideMail

TRUSTED = {"mailer": {"trust_pickles": True}}


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Describe the tests' own package as one that is installed."""
    name = f"{importers.__name__}.outside"
    monkeypatch.setitem(sys.modules, name, SimpleNamespace(Tables=Outside, APP="django_epica_mail"))


@pytest.mark.parametrize("name", SOURCES)
def test_a_package_that_is_not_installed_cannot_be_imported_from(name: str) -> None:
    with pytest.raises(CannotImport, match="not in INSTALLED_APPS"):
        importers.find(name, **TRUSTED.get(name, {}))


def test_pickles_are_read_only_if_they_are_trusted() -> None:
    with pytest.raises(CannotImport, match="--trust-pickles"):
        importers.find("mailer")


def test_an_installed_package_is_found_with_its_options(installed) -> None:
    source = importers.find("outside", suppressed=["a@example.com"])
    assert isinstance(source, Outside)
    assert list(source.listed()) == ["a@example.com"]


class OtherDatabase:
    """A router that keeps the other package's mail in a database of its own."""

    def db_for_write(self, model: Any, **_: object) -> str | None:
        return "archive" if model is OutsideMail else None


def test_mail_in_another_database_cannot_be_moved(installed, settings) -> None:
    settings.DATABASE_ROUTERS = [OtherDatabase()]
    with pytest.raises(CannotImport, match="in the database 'archive', ours is in 'default'"):
        importers.find("outside")


def test_a_key_names_package_table_and_row() -> None:
    source = Outside()
    assert source.key(OutsideMail(pk=7)) == "django-outside:outsidemail:7"
    assert source.key(User(pk=7)) == "django-outside:user:7"


def test_a_source_finds_the_models_of_its_app() -> None:
    source = Outside()
    source.app_label = "auth"
    assert source.rows("User").model is User


def test_rows_are_read_from_the_database_they_are_written_to(settings) -> None:
    class Replica:
        def db_for_read(self, model: object, **hints: object) -> str:
            return "replica"

    settings.DATABASE_ROUTERS = [Replica()]
    source = Outside()
    source.app_label = "auth"
    assert source.rows("User").all().db == "default"


def test_a_source_needs_neither_a_list_of_addresses_nor_a_lock() -> None:
    source = Source()
    assert list(source.listed()) == []
    with source.holding_back():
        pass


def test_a_naive_time_gets_the_sites_time_zone() -> None:
    istanbul = timezone(timedelta(hours=3))
    naive = datetime(2026, 3, 10, 12, 30)
    assert aware(naive) == naive.replace(tzinfo=istanbul)
    assert aware(naive.replace(tzinfo=timezone.utc)) == naive.replace(tzinfo=timezone.utc)
