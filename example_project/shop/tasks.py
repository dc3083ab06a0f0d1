"""The shop's own periodic task."""

from datetime import timedelta

from celery import shared_task
from django.conf import settings
from django.utils import timezone

from django_epica_mail.tasks import send_email_async
from shop.models import Order


@shared_task(ignore_result=True)
def send_daily_report() -> str:
    """Mail yesterday's number of orders to the shop; return the mail's id."""
    today = timezone.localtime().replace(hour=0, minute=0, second=0, microsecond=0)
    orders = Order.objects.filter(created__gte=today - timedelta(days=1), created__lt=today).count()
    result = send_email_async(
        subject=f"Orders of {today - timedelta(days=1):%Y-%m-%d}",
        message=f"Number of orders: {orders}",
        from_email=None,
        recipient_list=[settings.DEFAULT_FROM_EMAIL],
        category="report",
        # Beat may fire twice, for instance after a restart; the report is still sent once a day.
        idempotency_key=f"daily-report-{today:%Y-%m-%d}",
    )
    return str(result.id)
