"""Converts a message's fields and attributes to JSON: Django's, anymail's, and a site's own."""

from __future__ import annotations

import contextlib
import logging
import sys
from email.charset import Charset
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import django
from django.core.mail import EmailMessage, EmailMultiAlternatives

from django_epica_mail.exceptions import UnstorableMessage
from django_epica_mail.messages import tagged_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping


logger = logging.getLogger(__name__)

HEADER_FIELDS = ("subject", "from_email", "to", "cc", "bcc", "reply_to", "extra_headers")
FIELDS = (*HEADER_FIELDS, "body", "content_subtype", "encoding")

_ADDRESS_LISTS = ("to", "cc", "bcc", "reply_to")
_NO_STR_FALLBACK = ("content_subtype", "encoding")
"""Fields that must have a JSON form; a value of any other field may be stored as its ``str()``."""
_HEADERS_READ_BY_NAME = ("From", "To", "Cc", "Reply-To")
"""Extra headers that Django looks up by name instead of iterating over them."""
_DJANGO_CLASSES = (EmailMessage, EmailMultiAlternatives, object)
_STORED_SEPARATELY = ("alternatives", "attachments")
_EXCLUDED = frozenset({*FIELDS, *_STORED_SEPARATELY, "connection", "anymail_status"})
"""Names that are never stored as additional attributes."""
_DECISIVE = frozenset(
    (
        # docs.djangoproject.com/en/5.2/topics/email/#emailmultialternatives-objects
        *("alternative_subtype", "mixed_subtype"),
        # anymail.dev/en/stable/sending/anymail_additions/
        *("envelope_sender", "esp_extra", "merge_data", "merge_global_data", "merge_headers"),
        *("merge_metadata", "metadata", "send_at", "tags", "template_id", "track_clicks"),
        "track_opens",
    )
)
"""Attributes, besides the fields, that decide what is sent."""


def class_to_rebuild(message: EmailMessage) -> type:
    """Return the class to rebuild a message as.

    That is its own class or, if that computes a field, Django's: the computed value is stored.
    """
    return _class_to_rebuild(type(message))  # type: ignore[arg-type]


def pack(message: EmailMessage, is_read: Callable[[], bool] = lambda: True) -> dict[str, Any]:
    """Return the JSON form of a message's fields, as they are now, and other public attributes.

    Raises ``UnstorableMessage`` for an attribute without a JSON form, such as the context with its
    user that the class of a site's app keeps after rendering. If no transport reads what is
    neither Django's nor anymail's (``is_read``), such an attribute is left out instead, and one
    line of the log per class says so.
    """
    form = pack_fields(message, FIELDS)
    form.update(_pack_attributes(message, is_read))
    return form


def pack_fields(message: EmailMessage, names: Iterable[str]) -> dict[str, Any]:
    """Return the JSON form of some of Django's fields, with their current values."""
    return {name: _pack_field(message, name) for name in names}


def unpack(form: Mapping[str, Any]) -> dict[str, Any]:
    """Return a message's attributes from their JSON form, adapted to this version of Django.

    Raises ``TypeError`` and ``LookupError`` if lists of addresses or the headers are not what they
    are in a message: whoever reads them must not fail.
    """
    state: dict[str, Any] = {name: tagged_json.decode(value) for name, value in form.items()}
    for name in _ADDRESS_LISTS:
        iter(state[name] or ())
    state["extra_headers"] = dict(state["extra_headers"])
    if django.VERSION >= (6, 0):  # drop what only Django 5.2 supports
        if isinstance(state["encoding"], Charset):
            state["encoding"] = state["encoding"].get_output_charset()
        for name in ("mixed_subtype", "alternative_subtype"):
            state.pop(name, None)
    return state


def unset_names(message: EmailMessage) -> list[str]:
    """Return the names of a message's attributes that are anymail's ``UNSET``."""
    if _anymail_utils() is None:
        return []
    return [name for name, value in vars(message).items() if is_unset(value)]


def unset(names: Iterable[str]) -> dict[str, Any]:
    """Return anymail's ``UNSET`` for each name, or nothing if anymail is not imported."""
    return dict.fromkeys(names, _anymail_utils().UNSET) if _anymail_utils() else {}


@lru_cache(maxsize=64)
def _class_to_rebuild(cls: type) -> type:
    fields = (*FIELDS, *_STORED_SEPARATELY)
    if any(hasattr(_class_attribute(cls, name), "__set__") for name in fields):
        return EmailMultiAlternatives if issubclass(cls, EmailMultiAlternatives) else EmailMessage
    return cls


def _pack_field(message: EmailMessage, name: str) -> Any:
    value = getattr(message, name)
    if name == "extra_headers":
        value = _headers_as_dict(value)
    if name in _NO_STR_FALLBACK:
        return _pack_attribute(name, value)
    return tagged_json.encode(value, unknown=str)  # Django calls str() on header values too


def _headers_as_dict(headers: Mapping[str, Any]) -> dict[str, Any]:
    """Return headers as a dict in which Django finds the same values as in the caller's mapping."""
    plain = dict(headers.items())
    plain.update({name: headers[name] for name in _HEADERS_READ_BY_NAME if name in headers})
    return plain


def _pack_attributes(
    message: EmailMessage, is_read: Callable[[], bool]
) -> Iterator[tuple[str, Any]]:
    """Yield the public attributes that are not Django's: first the classes', then the object's."""
    for cls in reversed(type(message).__mro__):
        for name, value in () if cls in _DJANGO_CLASSES else vars(cls).items():
            if _is_data(cls, name, value):
                with contextlib.suppress(UnstorableMessage):  # the class will define it again
                    yield name, _pack_attribute(name, value)
    for name, value in vars(message).items():
        if not _is_data(type(message), name, value):
            continue
        try:
            yield name, _pack_attribute(name, value)
        except UnstorableMessage:
            if name in _DECISIVE or is_read():
                raise
            _report(type(message), name)  # type: ignore[arg-type] # classes have hashes


@lru_cache(maxsize=256)
def _report(cls: type, name: str) -> None:
    """Say once that an attribute is left out."""
    logger.warning(
        "Messages of the class %s.%s are stored without the attribute %r, which cannot be stored "
        "and which no transport reads.",
        cls.__module__,
        cls.__qualname__,
        name,
    )


def _is_data(cls: type, name: str, value: object) -> bool:
    """Return whether an attribute is data.

    Private names, methods, cached properties and anymail's ``UNSET`` are not.
    """
    if name.startswith("_") or name in _EXCLUDED or is_unset(value):
        return False
    return not hasattr(_class_attribute(cls, name), "__get__")


def _class_attribute(cls: type, name: str) -> object:
    """Return what a class or its bases define under a name; descriptors are not called."""
    return next((vars(base)[name] for base in cls.__mro__ if name in vars(base)), None)


def _pack_attribute(name: str, value: object) -> Any:
    try:
        return tagged_json.encode(value)
    except (tagged_json.UnencodableValue, RecursionError) as error:
        reason = "itself" if isinstance(error, RecursionError) else f"a {error}"
        raise UnstorableMessage(
            f"The message's attribute {name!r} of type {type(value).__name__} contains {reason}, "
            "which cannot be stored: use text, numbers, dates, or lists and dictionaries of them, "
            "or delete the attribute before sending."
        ) from None


def is_unset(value: object) -> bool:
    """Return whether a value is anymail's ``UNSET``."""
    return _anymail_utils() is not None and value is _anymail_utils().UNSET


def _anymail_utils() -> Any:
    """Return the module that defines ``UNSET``, or ``None``: no value is it before the import."""
    return sys.modules.get("anymail.utils")
