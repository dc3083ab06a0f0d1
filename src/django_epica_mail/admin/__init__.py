"""The Django admin pages: whether mail is flowing, and what happened to each e-mail.

Each module registers the pages it is named after.
"""

from django_epica_mail.admin import batches, dashboard, emails, events, gates, suppressions

__all__ = ["batches", "dashboard", "emails", "events", "gates", "suppressions"]
