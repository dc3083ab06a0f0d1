"""A stored message, changed where it stands: who it is for, without building it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from django_epica_mail import encryption
from django_epica_mail.serialization import tagged_json

if TYPE_CHECKING:
    from collections.abc import Callable

_LISTS = ("to", "cc", "bcc")
_BY_ADDRESS = ("merge_data", "merge_headers", "merge_metadata")


def without(envelope: str, is_left_out: Callable[[str], bool]) -> str:
    """Return a stored message without some of its recipients, their merge data included.

    A message that is kept as bytes is no longer sent to them; its headers stay as they are. Raises
    ``MissingKey`` for what no key of the site's decrypts.
    """
    form = json.loads(encryption.unseal(envelope))
    state = form["state"]
    for name in _LISTS:
        state[name] = _kept(state[name], is_left_out)
    if "recipients" in form:
        form["recipients"] = _kept(form["recipients"], is_left_out)
    for name in _BY_ADDRESS:
        values = tagged_json.decode(state.get(name))
        if isinstance(values, dict):
            kept = {key: value for key, value in values.items() if not is_left_out(str(key))}
            state[name] = tagged_json.encode(kept)
    return encryption.seal(json.dumps(form, allow_nan=False))


def _kept(form: Any, is_left_out: Callable[[str], bool]) -> Any:
    addresses = tagged_json.decode(form)
    return tagged_json.encode([it for it in addresses or () if not is_left_out(str(it))])
