"""A message's fields and attributes as JSON: Django's own, anymail's, and whatever a site adds."""

from __future__ import annotations

import contextlib
import sys
from email.charset import Charset
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import django
from django.core.mail import EmailMessage, EmailMultiAlternatives

from django_epica_mail.exceptions import UnstorableMessage
from django_epica_mail.messages import tagged_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping


HEADER_FIELDS = ("subject", "from_email", "to", "cc", "bcc", "reply_to", "extra_headers")
FIELDS = (*HEADER_FIELDS, "body", "content_subtype", "encoding")

_ENCODINGS = ("content_subtype", "encoding")
_LOOKED_UP = ("From", "To", "Cc", "Reply-To")
_DJANGO = (EmailMessage, EmailMultiAlternatives, object)
_STORED_APART = ("alternatives", "attachments")
_NOT_CONTENT = frozenset({*FIELDS, *_STORED_APART, "connection", "anymail_status"})


def class_to_rebuild(message: EmailMessage) -> type:
    """Return the message's class, or Django's if it computes a field, which is stored as it is."""
    return _class_to_rebuild(type(message))  # type: ignore[arg-type]


@lru_cache(maxsize=64)
def _class_to_rebuild(cls: type) -> type:
    fields = (*FIELDS, *_STORED_APART)
    if any(hasattr(_class_attribute(cls, name), "__set__") for name in fields):
        return EmailMultiAlternatives if issubclass(cls, EmailMultiAlternatives) else EmailMessage
    return cls


def pack(message: EmailMessage) -> dict[str, Any]:
    """Return the JSON form of a message's effective fields and its other public attributes.

    Raise ``UnstorableMessage`` for an attribute that has none.
    """
    form = pack_fields(message, FIELDS)
    form.update(_attributes(message))
    return form


def pack_fields(message: EmailMessage, names: Iterable[str]) -> dict[str, Any]:
    """Return the JSON form of some of Django's fields, with the value each has now."""
    return {name: _field(message, name) for name in names}


def unpack(form: Mapping[str, Any]) -> dict[str, Any]:
    """Return a message's state from its JSON form, as this version of Django understands it."""
    state: dict[str, Any] = {name: tagged_json.decode(value) for name, value in form.items()}
    if django.VERSION >= (6, 0):  # what only Django 5.2 knows
        if isinstance(state["encoding"], Charset):
            state["encoding"] = state["encoding"].get_output_charset()
        for name in ("mixed_subtype", "alternative_subtype"):
            state.pop(name, None)
    return state


def unset_names(message: EmailMessage) -> list[str]:
    """Return the names of a message's attributes that hold anymail's "no value"."""
    return [name for name, value in vars(message).items() if _is_unset(value)]


def unset(names: Iterable[str]) -> dict[str, Any]:
    """Return anymail's "no value" for each name; nothing if anymail is not there."""
    return dict.fromkeys(names, _anymail().UNSET) if _anymail() else {}


def _field(message: EmailMessage, name: str) -> Any:
    value = getattr(message, name)
    if name == "extra_headers":
        value = _plain_headers(value)
    if name in _ENCODINGS:
        return _attribute(name, value)
    return tagged_json.encode(value, unknown=str)  # as Django does with what it puts in a header


def _plain_headers(headers: Mapping[str, Any]) -> dict[str, Any]:
    """Return headers as a plain dict in which Django finds the same as in the caller's mapping."""
    plain = dict(headers.items())
    plain.update({name: headers[name] for name in _LOOKED_UP if name in headers})
    return plain


def _attributes(message: EmailMessage) -> Iterator[tuple[str, Any]]:
    """Give the public attributes that are not Django's: those of the classes, then the object's."""
    for cls in reversed(type(message).__mro__):
        for name, value in () if cls in _DJANGO else vars(cls).items():
            if _is_content(cls, name, value):
                with contextlib.suppress(UnstorableMessage):  # the class will have it again
                    yield name, _attribute(name, value)
    for name, value in vars(message).items():
        if _is_content(type(message), name, value):
            yield name, _attribute(name, value)


def _is_content(cls: type, name: str, value: object) -> bool:
    """Tell data from private names, methods, cached properties and anymail's "no value"."""
    if name.startswith("_") or name in _NOT_CONTENT or _is_unset(value):
        return False
    return not hasattr(_class_attribute(cls, name), "__get__")


def _class_attribute(cls: type, name: str) -> object:
    """Return what a class or its bases define under a name, descriptors as they are."""
    return next((vars(base)[name] for base in cls.__mro__ if name in vars(base)), None)


def _attribute(name: str, value: object) -> Any:
    try:
        return tagged_json.encode(value)
    except (tagged_json.UnencodableValue, RecursionError) as error:
        reason = "itself" if isinstance(error, RecursionError) else f"a {error}"
        raise UnstorableMessage(
            f"The message's attribute {name!r} of the type {type(value).__name__} holds {reason}, "
            "which cannot be stored: give text, numbers, dates, lists or dictionaries of them, or "
            "delete the attribute before sending."
        ) from None


def _is_unset(value: object) -> bool:
    return _anymail() is not None and value is _anymail().UNSET


def _anymail() -> Any:
    """Return anymail's module of UNSET; where nobody imported it, no value can be that."""
    return sys.modules.get("anymail.utils")
