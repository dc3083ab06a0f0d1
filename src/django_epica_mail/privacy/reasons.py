"""The reasons why bulk calls refused entries: one column, of which each is sealed by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from django.db import transaction

from django_epica_mail.exceptions import UnreadableEnvelope
from django_epica_mail.messages import encryption
from django_epica_mail.models import EmailBatch


@dataclass(slots=True)
class Reasons:
    """What became of the reasons of one bulk call."""

    batch: Any
    """Its id."""
    changed: int = 0
    unchanged: int = 0
    unreadable: int = 0
    """Left as they are, because none of the keys decrypts them, or they are another row's."""


def change_reasons(change: Callable[[str, str], str], using: str) -> Iterator[Reasons]:
    """Replace every stored reason by what ``change`` returns; yield the result of each bulk call.

    ``change`` takes a reason as it is stored, and the place to which it is bound. What it raises as
    ``UnreadableEnvelope`` leaves the reason unchanged.
    """
    batches = EmailBatch.objects.using(using).exclude(refused=[])
    for pk in list(batches.values_list("pk", flat=True)):
        with transaction.atomic(using=using):
            batch = batches.select_for_update().only("pk", "refused").filter(pk=pk).first()
            done = None if batch is None else _change(batch, change)
        if done is not None:
            yield done


def _change(batch: EmailBatch, change: Callable[[str, str], str]) -> Reasons:
    done = Reasons(batch.pk)
    for refusal in batch.refused:
        old = refusal["reason"]
        if not old:
            continue
        try:
            refusal["reason"] = change(old, encryption.refusal_of(batch.pk, refusal["index"]))
        except UnreadableEnvelope:
            done.unreadable += 1
            continue
        done.changed += refusal["reason"] != old
        done.unchanged += refusal["reason"] == old
    if done.changed:
        batch.save(update_fields=["refused"])
    return done
