"""The admin: for people who ask whether mail flows and what became of one.

Each module registers the pages of what it is named for.
"""

from django_epica_mail.admin import batches, dashboard, emails, events, gates, suppressions

__all__ = ["batches", "dashboard", "emails", "events", "gates", "suppressions"]
