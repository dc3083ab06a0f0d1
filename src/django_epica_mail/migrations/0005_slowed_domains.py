"""The recipients' domain of a mail, and the domains whose mail is slowed down."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("epica_mail", "0004_gate_pauses_and_probes")]

    operations = [
        migrations.AddField(
            model_name="emaillog",
            name="domain",
            field=models.CharField(
                blank=True,
                db_default="",
                default="",
                max_length=255,
                verbose_name="recipients' domain",
            ),
        ),
        migrations.CreateModel(
            name="SlowedDomain",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("transport", models.CharField(max_length=64, verbose_name="transport")),
                ("domain", models.CharField(max_length=255, verbose_name="domain")),
                (
                    "ceiling",
                    models.FloatField(verbose_name="mails per second at the last complaint"),
                ),
                ("complaints", models.PositiveIntegerField(default=1, verbose_name="complaints")),
                ("turns", models.PositiveBigIntegerField(default=0, verbose_name="turns")),
                ("changed_at", models.DateTimeField(verbose_name="last complaint")),
                ("since", models.DateTimeField(verbose_name="slowed down since")),
                ("next_at", models.DateTimeField(verbose_name="next e-mail")),
                ("reply", models.TextField(blank=True, verbose_name="server's reply")),
            ],
            options={
                "verbose_name": "slowed domain",
                "verbose_name_plural": "slowed domains",
                "default_permissions": (),
                "constraints": [
                    models.UniqueConstraint(
                        fields=("transport", "domain"), name="epica_mail_one_slowed_domain"
                    )
                ],
            },
        ),
    ]
