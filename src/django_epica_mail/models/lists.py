"""Columns that hold a list as JSON."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.db import models

from django_epica_mail.models.bounds import MOST_BIG
from django_epica_mail.models.fields import Unseen


class JSONList(Unseen, models.JSONField):
    """A list of items of one form.

    What somebody has damaged is read without the items that have another form, or as an empty list:
    one row must not stop the work on all others. In the database it is Django's ``JSONField``.
    """

    def __init__(
        self, *args: Any, of: Callable[[Any], bool] = lambda item: True, **options: Any
    ) -> None:
        """Take as ``of`` what returns whether an item has the form."""
        self._is_item = of
        super().__init__(*args, **options)

    def from_db_value(self, value: Any, expression: Any, connection: Any) -> Any:
        """Return the items of the list."""
        try:
            items = super().from_db_value(value, expression, connection)
        except (RecursionError, ValueError):  # such as bytes, or a number of 5,000 digits
            return []
        return [it for it in items if self._is_item(it)] if isinstance(items, list) else []


def is_name(item: Any) -> bool:
    """Return whether an item is text."""
    return isinstance(item, str)


def is_count(item: Any) -> bool:
    """Return whether an item is a whole number that a ``BigCount`` may be."""
    return isinstance(item, int) and not isinstance(item, bool) and 0 <= item <= MOST_BIG


def is_refusal(item: Any) -> bool:
    """Return whether an item is an entry that a bulk call refused: ``EmailBatch.refused``."""
    if not isinstance(item, dict) or not is_count(item.get("index")):
        return False
    texts = (item.get("reason"), item.get("error", ""), item.get("rule", ""))
    return all(isinstance(it, str) for it in texts)
