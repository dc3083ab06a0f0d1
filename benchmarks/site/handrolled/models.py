"""The log table that many projects write themselves."""

from __future__ import annotations

from django.db import models


class EmailLog(models.Model):
    """One mail and its status."""

    subject = models.CharField(max_length=255)
    body = models.TextField()
    html = models.TextField(blank=True)
    sender = models.EmailField()
    to = models.EmailField()
    status = models.CharField(max_length=10, default="queued")
    error = models.TextField(blank=True)
    created_at = models.DateTimeField(auto_now_add=True)
    sent_at = models.DateTimeField(null=True)

    def __str__(self) -> str:
        return self.subject
