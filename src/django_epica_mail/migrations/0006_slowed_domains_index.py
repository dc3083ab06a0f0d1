"""The index of the waiting mail of a domain, in a migration that lets mail be queued meanwhile."""

from typing import Any

from django.db import migrations

from django_epica_mail.models.indexes import WaitingIndex


class AddIndexMeanwhile(migrations.AddIndex):
    """Add an index while rows are written, on PostgreSQL; other databases need no option for it."""

    def database_forwards(
        self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any
    ) -> None:
        """Add the index, unless an earlier run of this migration has."""
        model = to_state.apps.get_model(app_label, self.model_name)
        connection = schema_editor.connection
        if not self.allow_migrate_model(connection.alias, model):
            return
        is_postgresql = connection.vendor == "postgresql"
        if is_postgresql:
            # What a run that was interrupted left behind is not valid, and not used.
            schema_editor.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {self.index.name}")
        options = {"concurrently": True} if is_postgresql else {}
        schema_editor.add_index(model, self.index, **options)


class Migration(migrations.Migration):
    atomic = False
    dependencies = [("epica_mail", "0005_slowed_domains")]

    operations = [
        AddIndexMeanwhile(
            model_name="emaillog",
            index=WaitingIndex(
                fields=["domain", "queue", "transport", "pending", "due_at"],
                name="epica_mail_domain",
            ),
        ),
    ]
