"""Searches every table for what is left of an erased address."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

from django.apps import apps
from django.db import models, router

from django_epica_mail.exceptions import MissingKey
from django_epica_mail.messages import encryption
from django_epica_mail.messages.addresses import canonical
from django_epica_mail.models import EmailBatchPart, EmailEvent, EmailRecipient, Suppression
from django_epica_mail.privacy.person import (
    LOG_TEXTS,
    RESULT_TEXTS,
    Person,
    is_cut,
    mentioning,
    optional_model,
    text_of,
)

_SEALED = {"envelope": encryption.envelope_of, "payload": encryption.payload_of}
"""Columns that hold JSON, encrypted if the site has keys, and what each is bound to."""

_ADDRESSES = frozenset({"address", "from_email"})
"""Columns that hold nothing but an address."""

_DIGESTS = frozenset({"digest", "key"})


def remains(person: Person, using: str, *, known: Collection[str]) -> list[str]:
    """Return where the address still stands, as ``table.column id``, in any of its encodings.

    Reads every text column of this app's tables, of django-celery-results and of the admin's log
    of this app. Leaves out rows of the mails and bulk calls ``known``, which are reported already,
    and longer addresses that are somebody else's.
    """
    found: list[str] = []
    for model in apps.get_app_config("epica_mail").get_models():
        found += _in_rows(
            person, model._default_manager.using(using), _columns(model), using, known
        )
    for app_label, name, names, wanted in (
        ("django_celery_results", "TaskResult", RESULT_TEXTS, {}),
        ("admin", "LogEntry", LOG_TEXTS, {"content_type__app_label": "epica_mail"}),
    ):
        other = optional_model(app_label, name)
        if other is not None:
            rows = other._default_manager.using(router.db_for_write(other)).filter(**wanted)
            found += _in_rows(person, rows, names, using, known)
    return found


def text_columns(model: type[models.Model], without: Collection[str]) -> list[str]:
    """Return the names of a model's columns of free text."""
    return [
        column.name
        for column in model._meta.concrete_fields
        if isinstance(column, (models.CharField, models.TextField))
        and not column.choices
        and column.name not in without
    ]


def _columns(model: type[models.Model]) -> list[str]:
    of_json = [it.name for it in model._meta.concrete_fields if isinstance(it, models.JSONField)]
    return [*text_columns(model, _DIGESTS), *of_json]


def _in_rows(
    person: Person,
    rows: models.QuerySet[Any],
    names: Sequence[str],
    using: str,
    known: Collection[str],
) -> Iterator[str]:
    plain = [name for name in names if name not in _SEALED]
    mail = ["email_id"] if any(it.name == "email" for it in rows.model._meta.fields) else []
    hits = mentioning(person, rows, [*plain, *mail]) if plain else iter(())
    for row in hits:
        if not {str(row["pk"]), str(row.get("email_id"))} & set(known):
            for name in plain:
                if _stands_in(person, rows.model, name, text_of(row[name]), using):
                    yield f"{rows.model._meta.label}.{name} {row['pk']}"
    for name in set(_SEALED).intersection(names):
        is_part = rows.model is EmailBatchPart
        owner = ["batch_id"] if is_part else []
        place_of = encryption.part_of if is_part else _SEALED[name]
        contents = rows.exclude(**{name: ""}).values_list("pk", *owner, name)
        for pk, *owners, stored in contents.iterator(chunk_size=50):
            is_known = not {str(it) for it in owners or [pk]}.isdisjoint(known)
            if not is_known and _is_in_sealed(person, stored, place_of(pk)):
                yield f"{rows.model._meta.label}.{name} {pk}"


def _stands_in(person: Person, model: type[models.Model], name: str, text: str, using: str) -> bool:
    """Return whether a text has the address, or may have it within a longer one."""
    return any(
        not hit.longer
        or not (
            (name in _ADDRESSES and canonical(text) == canonical(hit.longer))
            or _is_anothers(hit.longer, using)
        )
        for hit in person.occurrences(text, is_cut=is_cut(model, name, text))
    )


def _is_anothers(longer: str, using: str) -> bool:
    """Return whether a longer address is known: from a recipient, an event or the list."""
    address = canonical(longer)
    return any(
        model._default_manager.using(using).filter(address=address).exists()
        for model in (EmailRecipient, EmailEvent, Suppression)
    )


def _is_in_sealed(person: Person, stored: str, place: str) -> bool:
    try:
        return person.is_mentioned_in(encryption.unseal(stored, place))
    except (MissingKey, ValueError):
        return False
