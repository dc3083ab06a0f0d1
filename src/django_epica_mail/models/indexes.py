"""An index of waiting mail, which is small wherever the database can leave other rows out."""

from __future__ import annotations

from typing import Any

from django.db import models


class WaitingIndex(models.Index):
    """An index of the rows that a worker may claim: those with a value in ``pending``.

    MariaDB and MySQL have no partial indexes. There it is an index of all rows, instead of none and
    a warning (models.W037), which is what the option ``condition`` of Django's class means.
    """

    def create_sql(self, model: Any, schema_editor: Any, *args: Any, **options: Any) -> Any:
        """Return the statement that creates the index."""
        if not schema_editor.connection.features.supports_partial_indexes:
            return super().create_sql(model, schema_editor, *args, **options)
        waiting = models.Q(pending__isnull=False)
        partial = models.Index(fields=self.fields, name=self.name, condition=waiting)
        return partial.create_sql(model, schema_editor, *args, **options)
