"""How a status looks."""

from __future__ import annotations

from django.utils.html import format_html
from django.utils.safestring import SafeString

from django_epica_mail.models import EmailLog


def badge(mail: EmailLog) -> SafeString:
    """Return the status of a mail as a badge: a word, and a colour that says the same."""
    return format_html(
        '<span class="epica-badge epica-{}">{}</span>', mail.status, mail.get_status_display()
    )
