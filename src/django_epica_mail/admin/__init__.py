"""The Django admin pages: whether mail is flowing, and what happened to each e-mail.

Each module registers the pages it is named after.
"""

from django_epica_mail.admin import batches, emails, events, gates, suppressions
from django_epica_mail.admin.dashboard import page

__all__ = ["batches", "emails", "events", "gates", "page", "suppressions"]
