"""Add delays that differ from retry to retry, and a failure of mail that ended its worker twice."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("epica_mail", "0001_initial"),
    ]

    operations = [
        migrations.AddField(
            model_name="emaillog",
            name="retry_delays",
            field=models.CharField(
                blank=True,
                db_default="",
                default="",
                max_length=800,
                verbose_name="seconds before each retry",
            ),
        ),
        migrations.AlterField(
            model_name="deliveryattempt",
            name="failure_kind",
            field=models.CharField(
                blank=True,
                choices=[
                    ("permanent", "refused for good"),
                    ("transient", "refused for now"),
                    ("throttled", "throttled"),
                    ("outage", "transport out of order"),
                    ("unknown", "reply lost"),
                    ("worker_lost", "worker lost"),
                    ("poison", "ended its worker twice"),
                    ("message", "message cannot be built"),
                    ("overdue", "waited too long"),
                    ("suppressed", "on the suppression list"),
                    ("vetoed", "stopped by the site"),
                ],
                max_length=16,
                verbose_name="failure",
            ),
        ),
        migrations.AlterField(
            model_name="emaillog",
            name="failure_kind",
            field=models.CharField(
                blank=True,
                choices=[
                    ("permanent", "refused for good"),
                    ("transient", "refused for now"),
                    ("throttled", "throttled"),
                    ("outage", "transport out of order"),
                    ("unknown", "reply lost"),
                    ("worker_lost", "worker lost"),
                    ("poison", "ended its worker twice"),
                    ("message", "message cannot be built"),
                    ("overdue", "waited too long"),
                    ("suppressed", "on the suppression list"),
                    ("vetoed", "stopped by the site"),
                ],
                max_length=16,
                verbose_name="failure",
            ),
        ),
        migrations.AlterField(
            model_name="emailtotal",
            name="failure_kind",
            field=models.CharField(
                blank=True,
                choices=[
                    ("permanent", "refused for good"),
                    ("transient", "refused for now"),
                    ("throttled", "throttled"),
                    ("outage", "transport out of order"),
                    ("unknown", "reply lost"),
                    ("worker_lost", "worker lost"),
                    ("poison", "ended its worker twice"),
                    ("message", "message cannot be built"),
                    ("overdue", "waited too long"),
                    ("suppressed", "on the suppression list"),
                    ("vetoed", "stopped by the site"),
                ],
                max_length=16,
            ),
        ),
    ]
