"""The task that many projects write themselves, called once for each mail."""

from __future__ import annotations

from typing import Any

from celery import shared_task
from django.core.mail import send_mail
from django.utils import timezone

from benchmarks.site.handrolled.models import EmailLog


@shared_task(bind=True, max_retries=3, default_retry_delay=300, ignore_result=True)
def send_email(self: Any, pk: int) -> None:
    """Send one mail and record the outcome."""
    row = EmailLog.objects.get(pk=pk)
    try:
        send_mail(row.subject, row.body, row.sender, [row.to], html_message=row.html)
    except OSError as error:
        row.status, row.error = "retrying", str(error)
        row.save()
        raise self.retry(exc=error) from error
    row.status, row.sent_at = "sent", timezone.now()
    row.save()
