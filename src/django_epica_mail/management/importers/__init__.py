"""Mail moved out of the tables of other packages: one module for each, and one that moves.

A mail that waits there becomes a row of the queue and is marked as done with in the same
transaction, so that exactly one of the two packages sends it. What is finished is copied, as a
record.
"""

from django_epica_mail.management.importers.base import CannotImport, Source, find
from django_epica_mail.management.importers.move import Report, move

__all__ = ["CannotImport", "Report", "Source", "find", "move"]
