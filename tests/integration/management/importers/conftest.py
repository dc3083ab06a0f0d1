"""The table of the package that mail is moved from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from django.db import connection

from tests.integration.management.importers.outside import OutsideMail


@pytest.fixture(scope="package", autouse=True)
def _table(django_db_setup: None, django_db_blocker: Any) -> Iterator[None]:
    with django_db_blocker.unblock(), connection.schema_editor() as editor:
        editor.create_model(OutsideMail)
    yield
    with django_db_blocker.unblock(), connection.schema_editor() as editor:
        editor.delete_model(OutsideMail)
