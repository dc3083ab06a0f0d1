"""JSON for values that JSON has no form for: bytes, dates, tuples, sets, any dictionary.

Values that JSON supports are written unchanged; others as ``{"$": kind, "v": form}``. A dictionary
with a key ``"$"``, or with keys that are not text, has the kind ``dict`` and a list of pairs.
"""

from __future__ import annotations

import math
from base64 import b64decode, b64encode
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from email.charset import Charset
from email.header import Header
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn
from uuid import UUID

from django.utils.functional import LazyObject, Promise

from django_epica_mail.exceptions import UnreadableEnvelope

if TYPE_CHECKING:
    from collections.abc import Callable


TAG = "$"


class UnencodableValue(Exception):  # noqa: N818
    """A value, or one inside it, has no JSON form; its type is the argument."""


def refuse(value: object) -> NoReturn:
    """Raise ``UnencodableValue`` with the type of a value that has no JSON form."""
    raise UnencodableValue(f"{type(value).__module__}.{type(value).__qualname__}")


MOST_LEVELS = 100
"""How deep lists and dictionaries may stand in one another: who decodes them may have less room on
the stack than who encodes them."""


def encode(value: Any, unknown: Callable[[Any], Any] = refuse, levels: int = MOST_LEVELS) -> Any:
    """Return the JSON form of a value; lazy text is evaluated immediately.

    ``unknown`` returns the form of a value of any other type. By default it raises
    ``UnencodableValue``. Raises ``RecursionError`` for a value of more than so many ``levels``.
    """
    if value is None or type(value) is str:
        return value  # nearly every value
    if isinstance(value, LazyObject):
        _, (value,) = value.__reduce__()
    if value is None or isinstance(value, (str, int)):
        return value
    if isinstance(value, Promise):
        return str(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else {TAG: "float", "v": repr(value)}
    if levels <= 0 and isinstance(value, (dict, list, *_COLLECTIONS.values())):
        raise RecursionError(f"Lists and dictionaries may be {MOST_LEVELS} deep in one another.")
    if isinstance(value, dict):
        return _encode_dict(value, unknown, levels - 1)
    if isinstance(value, list):
        return [encode(item, unknown, levels - 1) for item in value]
    for tag, collection in _COLLECTIONS.items():
        if isinstance(value, collection):
            return {TAG: tag, "v": [encode(item, unknown, levels - 1) for item in value]}
    for tag, kind in _SCALARS.items():
        if isinstance(value, kind.type):
            return {TAG: tag, "v": kind.pack(value)}
    return unknown(value)


def decode(form: Any) -> Any:
    """Return the value whose JSON form ``encode`` returned.

    Raises ``UnreadableEnvelope`` for a kind that this version of the package does not know.
    """
    if isinstance(form, list):
        return [decode(item) for item in form]
    if not isinstance(form, dict):
        return form
    if TAG not in form:
        return {key: decode(item) for key, item in form.items()}
    tag: str = form[TAG]
    value: Any = form["v"]
    if tag == "float":
        return float(value)
    if tag == "dict":
        return {decode(key): decode(item) for key, item in value}
    if tag in _COLLECTIONS:
        return _COLLECTIONS[tag](decode(item) for item in value)
    if tag in _SCALARS:
        return _SCALARS[tag].unpack(value)
    raise UnreadableEnvelope(
        f"A stored value is of kind {tag!r}, which this version of django-epica-mail does not "
        "know: upgrade the package in the worker."
    )


def _encode_dict(
    value: dict[Any, Any], unknown: Callable[[Any], Any], levels: int
) -> dict[str, Any]:
    if TAG not in value and all(isinstance(key, str) for key in value):
        return {key: encode(item, unknown, levels) for key, item in value.items()}
    pairs = [
        [encode(key, unknown, levels), encode(item, unknown, levels)] for key, item in value.items()
    ]
    return {TAG: "dict", "v": pairs}


class _Kind(NamedTuple):
    type: type | tuple[type, ...]
    pack: Callable[[Any], Any]
    unpack: Callable[[Any], Any]


def _unpack_charset(state: dict[str, Any]) -> Charset:
    charset = Charset()
    vars(charset).update(state)
    return charset


def _unpack_header(state: Any) -> Header:
    header = Header()
    vars(header).update(decode(state))
    return header


# The order matters: a datetime is also a date.
_SCALARS: dict[str, _Kind] = {
    "bytes": _Kind(
        (bytes, bytearray, memoryview), lambda raw: b64encode(raw).decode("ascii"), b64decode
    ),
    "datetime": _Kind(datetime, datetime.isoformat, datetime.fromisoformat),
    "date": _Kind(date, date.isoformat, date.fromisoformat),
    "time": _Kind(time, time.isoformat, time.fromisoformat),
    "timedelta": _Kind(
        timedelta,
        lambda span: [span.days, span.seconds, span.microseconds],
        lambda parts: timedelta(*parts),
    ),
    "decimal": _Kind(Decimal, str, Decimal),
    "uuid": _Kind(UUID, str, UUID),
    "charset": _Kind(Charset, vars, _unpack_charset),
    "header": _Kind(Header, lambda header: encode(vars(header)), _unpack_header),
}
_COLLECTIONS: dict[str, Any] = {"tuple": tuple, "set": set, "frozenset": frozenset}
