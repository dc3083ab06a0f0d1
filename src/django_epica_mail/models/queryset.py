"""Queries of the queue, and the one way to change an e-mail's status."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from django.db import connections, models, transaction

from django_epica_mail import lifecycle

if TYPE_CHECKING:
    from django_epica_mail.models.tables import EmailLog


class EmailQuerySet(models.QuerySet["EmailLog"]):
    """Queries on the queue, and the only way to change a status."""

    def move(
        self,
        move: lifecycle.Move,
        ids: Iterable[uuid.UUID],
        *,
        token: uuid.UUID | None = None,
        **values: Any,
    ) -> int:
        """Make a move for those of ``ids`` whose status allows it; return how many were moved.

        ``token`` restricts it to rows still held by that claim. Whether a row can be claimed
        afterwards (``pending``) and whether it is leased follow from the move. Other column values
        are set as given.
        """
        rows = self.filter(pk__in=ids, status__in=move.sources)
        if token is not None:
            rows = rows.filter(lease_token=token)
        if move is lifecycle.REQUEUE:
            rows = rows.exclude(envelope="")  # mail whose content was deleted cannot be sent
        values["status"] = move.target
        values["pending"] = models.F("priority") if move.target in lifecycle.CLAIMABLE else None
        if move is not lifecycle.CLAIM:
            values["lease_until"] = None
        return rows.update(**values)

    def move_returning(
        self,
        move: lifecycle.Move,
        ids: Iterable[uuid.UUID],
        *,
        only: Sequence[str] = ("pk",),
        **values: Any,
    ) -> list[EmailLog]:
        """Make a move as ``move`` does; return the rows that made it, with the columns ``only``.

        A fresh ``lease_token`` tells the rows moved by this call from rows that had the target
        status before. Call it inside a transaction: otherwise another process may move a row on
        between the two statements.
        """
        token, ids = uuid.uuid4(), list(ids)
        self.move(move, ids, lease_token=token, **values)
        moved = self._rows().filter(pk__in=ids, lease_token=token)
        return list(moved.only(*only).order_by())

    def move_returning_ids(
        self, move: lifecycle.Move, ids: Iterable[uuid.UUID], **values: Any
    ) -> list[uuid.UUID]:
        """Make a move as ``move_returning`` does; return the ids that made it, in their order."""
        ids = list(ids)
        moved = {row.pk for row in self.move_returning(move, ids, **values)}
        return [pk for pk in ids if pk in moved]

    def forget_content(self, ids: Iterable[uuid.UUID]) -> None:
        """Delete the content of e-mails: envelopes, and attachments that no other e-mail uses."""
        ids = list(ids)
        if not ids:
            return
        links = self.model.attachments.through._default_manager.using(self.db)
        links = links.filter(emaillog_id__in=ids)
        candidates = list(links.values_list("emailattachment_id", flat=True).distinct())
        links.delete()
        attachment = self.model.attachments.rel.model
        attachments = attachment._default_manager.using(self.db).filter(pk__in=candidates)
        if candidates and connections[self.db].features.has_select_for_update:
            # In one order, and before looking for other links: of two transactions that delete the
            # last two links of an attachment, the second waits here and sees the first one's.
            list(attachments.order_by("pk").select_for_update().values_list("pk"))
        attachments.filter(emails__isnull=True).delete()
        self._rows().filter(pk__in=ids).update(envelope="")

    def delete_with_content(self, ids: Iterable[uuid.UUID]) -> None:
        """Delete e-mails, and the attachments that no other e-mail uses."""
        ids = list(ids)
        with transaction.atomic(using=self.db):
            self.forget_content(ids)
            self._rows().filter(pk__in=ids).only("pk").delete()

    def change_in_chunks(self, size: int, change: Callable[[list[EmailLog]], int]) -> int:
        """Call ``change`` with the rows in lists of ``size``; return the sum of what it returns.

        ``change`` returns how many rows of its list no longer match the query. The others are not
        met again: a row that cannot be changed neither stops nor repeats the work.
        """
        changed = unchanged = 0
        while chunk := list(self[unchanged : unchanged + size]):
            number = change(chunk)
            changed += number
            unchanged += len(chunk) - number
        return changed

    def lock_ids(self, size: int) -> list[uuid.UUID]:
        """Lock up to ``size`` rows and return their ids; skip rows that others have locked.

        The conditions of the query hold for the locked rows until the end of the transaction.
        """
        return list(self.skipping_locked().values_list("pk", flat=True)[:size])

    def skipping_locked(self) -> EmailQuerySet:
        """Lock the rows found, skipping rows that another transaction has locked.

        SQLite, which has one writer at a time, neither locks nor skips.
        """
        features = connections[self.db].features
        if not features.has_select_for_update_skip_locked:
            return self
        # A plain FOR UPDATE would skip rows to which an open transaction adds a child row.
        return self.select_for_update(
            skip_locked=True, no_key=features.has_select_for_no_key_update
        )

    def _rows(self) -> EmailQuerySet:
        """Return all rows of the database of this query."""
        return self.model.objects.using(self.db)
