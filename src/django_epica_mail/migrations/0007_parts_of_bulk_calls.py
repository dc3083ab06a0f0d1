"""What is known of a bulk call under way, and a table for the entries of one that is too long."""

import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("epica_mail", "0006_slowed_domains_index")]

    operations = [
        migrations.AddField(
            model_name="emailbatch",
            name="queue",
            field=models.CharField(
                blank=True, db_default="", default="", editable=False, max_length=64
            ),
        ),
        migrations.AddField(
            model_name="emailbatch",
            name="active_at",
            field=models.DateTimeField(editable=False, null=True),
        ),
        migrations.CreateModel(
            name="EmailBatchPart",
            fields=[
                ("id", models.UUIDField(editable=False, primary_key=True, serialize=False)),
                ("start", models.PositiveIntegerField(editable=False)),
                ("payload", models.TextField(editable=False)),
                (
                    "batch",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="parts",
                        to="epica_mail.emailbatch",
                    ),
                ),
            ],
            options={
                "verbose_name": "part of an e-mail batch",
                "verbose_name_plural": "parts of e-mail batches",
                "default_permissions": (),
            },
        ),
    ]
