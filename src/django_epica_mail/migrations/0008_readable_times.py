"""Refuse times that no driver reads, in a migration that lets mail be queued and sent meanwhile."""

from typing import Any

from django.db import migrations
from django.db.models import Case, DateTimeField, F, Q, Value, When

from django_epica_mail.models.bounds import READABLE, ReadableTimes


class AddReadableTimes(migrations.AddConstraint):
    """Add a constraint on PostgreSQL, the one database that stores such times.

    Without a lock while the rows are read: those that are there are examined after the constraint
    holds for new ones.
    """

    constraint: ReadableTimes

    def database_forwards(
        self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any
    ) -> None:
        """Add the constraint, unless an earlier run of this migration has."""
        model = to_state.apps.get_model(app_label, self.model_name)
        if not self._is_for(schema_editor, model):
            return
        table = schema_editor.quote_name(model._meta.db_table)
        name = schema_editor.quote_name(self.constraint.name)
        if not schema_editor.collect_sql:
            self._mend(model, schema_editor.connection.alias)
        statements = (
            f"ALTER TABLE {table} DROP CONSTRAINT IF EXISTS {name}",
            f"{self.constraint.create_sql(model, schema_editor)} NOT VALID",
            f"ALTER TABLE {table} VALIDATE CONSTRAINT {name}",
        )
        for statement in statements:
            schema_editor.execute(statement, params=None)

    def database_backwards(
        self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any
    ) -> None:
        """Remove the constraint where it is."""
        model = to_state.apps.get_model(app_label, self.model_name)
        if self._is_for(schema_editor, model):
            schema_editor.remove_constraint(model, self.constraint)

    def _is_for(self, schema_editor: Any, model: Any) -> bool:
        connection = schema_editor.connection
        is_ours = self.allow_migrate_model(connection.alias, model)
        return is_ours and connection.vendor == "postgresql"

    def _mend(self, model: Any, using: str) -> None:
        """Set times that are out of bounds to the nearest that are within."""
        first, last = READABLE
        outside, values = Q(), {}
        for name in self.constraint.fields:
            early, late = Q(**{f"{name}__lt": first}), Q(**{f"{name}__gt": last})
            outside |= early | late
            values[name] = Case(
                When(early, then=Value(first)),
                When(late, then=Value(last)),
                default=F(name),
                output_field=DateTimeField(),
            )
        model._default_manager.using(using).filter(outside).update(**values)


def of(model: str, table: str, *columns: str) -> AddReadableTimes:
    """Return the operation for some columns of a table."""
    constraint = ReadableTimes(fields=columns, name=f"epica_mail_{table}_times")
    return AddReadableTimes(model_name=model, constraint=constraint)


class Migration(migrations.Migration):
    atomic = False
    dependencies = [("epica_mail", "0007_parts_of_bulk_calls")]

    operations = [
        of("emailbatch", "batch", "created_at", "active_at", "finished_at"),
        of(
            "emaillog",
            "mail",
            *("created_at", "due_at", "expires_at", "give_up_at", "finished_at", "lease_until"),
        ),
        of("deliveryattempt", "attempt", "created_at"),
        of("pendingresult", "result", "due_at"),
        of("emailevent", "event", "at", "created_at"),
        of("suppression", "suppression", "created_at", "expires_at"),
        of(
            "deliverygate",
            "gate",
            *("paused_at", "open_until", "tripped_at", "probed_at", "resumed_at", "last_sweep_at"),
        ),
        of("sloweddomain", "slowed", "changed_at", "since", "next_at"),
        of("emailtotal", "total", "hour"),
        of("countingmark", "mark", "counted_until"),
    ]
