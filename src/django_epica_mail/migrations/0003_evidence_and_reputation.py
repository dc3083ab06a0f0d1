"""Mail resolved by evidence, bounce and complaint rates, and paused categories."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("epica_mail", "0002_retry_delays_and_poison")]

    operations = [
        migrations.AddField(
            model_name="deliverygate",
            name="resumed_at",
            field=models.DateTimeField(blank=True, null=True, verbose_name="resumed at"),
        ),
        migrations.AlterField(
            model_name="deliverygate",
            name="scope",
            field=models.CharField(
                choices=[
                    ("queue", "queue"),
                    ("transport", "transport"),
                    ("category", "category"),
                ],
                max_length=9,
                verbose_name="scope",
            ),
        ),
        migrations.AlterField(
            model_name="emailevent",
            name="kind",
            field=models.CharField(
                choices=[
                    ("accepted", "taken by the provider"),
                    ("delivered", "delivered"),
                    ("deferred", "deferred"),
                    ("bounced", "bounced"),
                    ("rejected", "rejected by the provider"),
                    ("failed", "failed at the provider"),
                    ("complained", "reported as spam"),
                    ("unsubscribed", "unsubscribed"),
                    ("subscribed", "subscribed"),
                    ("opened", "opened"),
                    ("clicked", "clicked"),
                    ("autoresponded", "answered by a machine"),
                    ("resolved", "unknown outcome decided"),
                ],
                max_length=16,
                verbose_name="kind",
            ),
        ),
        migrations.CreateModel(
            name="ReputationDay",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("day", models.DateField()),
                ("category", models.CharField(blank=True, max_length=64)),
                ("domain", models.CharField(blank=True, max_length=255)),
                ("mails", models.PositiveBigIntegerField(default=0)),
                ("bounced", models.PositiveBigIntegerField(default=0)),
                ("complained", models.PositiveBigIntegerField(default=0)),
            ],
            options={
                "verbose_name": "reputation",
                "verbose_name_plural": "reputation",
                "default_permissions": (),
                "constraints": [
                    models.UniqueConstraint(
                        fields=("day", "category", "domain"), name="epica_mail_one_reputation"
                    )
                ],
            },
        ),
    ]
