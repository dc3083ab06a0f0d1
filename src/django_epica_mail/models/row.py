"""What all tables have in common."""

from __future__ import annotations

from typing import Any

from django.db import models, router


class Row(models.Model):
    """A row that is read again from the database it is in, whatever a site routes reads to.

    A replica may not have it yet.
    """

    class Meta:
        abstract = True

    def refresh_from_db(
        self, using: str | None = None, fields: Any = None, *args: Any, **options: Any
    ) -> None:
        """Read the row, or fields of it, again; Django reads deferred fields through this too."""
        using = using or self._state.db or router.db_for_write(type(self))
        super().refresh_from_db(using, fields, *args, **options)
