"""Add to a gate who paused it, when and why, and when its breaker opened and was last probed."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("epica_mail", "0003_evidence_and_reputation")]

    operations = [
        migrations.AddField(
            model_name="deliverygate",
            name="paused_at",
            field=models.DateTimeField(blank=True, null=True, verbose_name="paused at"),
        ),
        migrations.AddField(
            model_name="deliverygate",
            name="paused_by",
            field=models.CharField(
                blank=True, db_default="", max_length=150, verbose_name="paused by"
            ),
        ),
        migrations.AddField(
            model_name="deliverygate",
            name="note",
            field=models.CharField(blank=True, db_default="", max_length=200, verbose_name="note"),
        ),
        migrations.AddField(
            model_name="deliverygate",
            name="tripped_at",
            field=models.DateTimeField(blank=True, null=True, verbose_name="out of order since"),
        ),
        migrations.AddField(
            model_name="deliverygate",
            name="probed_at",
            field=models.DateTimeField(blank=True, null=True, verbose_name="last probe"),
        ),
    ]
