"""Moves mail from the tables of other packages into the queue; each package has its own module.

A waiting mail becomes a row of the queue and is marked as done in the other package's table in the
same transaction, so exactly one of the two packages sends it. Finished mail is copied as a record.
"""

from django_epica_mail.management.importers.base import CannotImport, Source, find
from django_epica_mail.management.importers.move import Report, move

__all__ = ["CannotImport", "Report", "Source", "find", "move"]
