"""Converts Python's own MIME objects to JSON: attached parts and attached non-Django messages.

An object is stored as it was built, with its headers in order and its payload as written. It is
never stored as text to parse again: a parser returns a different object, with different bytes.
"""

from __future__ import annotations

import binascii
import pkgutil
from base64 import encodebytes
from collections.abc import Callable, Mapping
from email import policy as policies
from email.header import Header
from email.message import Message, MIMEPart
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from django.apps import apps
from django.core.mail import EmailMessage, EmailMultiAlternatives

from django_epica_mail import conf
from django_epica_mail.exceptions import InvalidMessage, UnstorableMessage
from django_epica_mail.messages import tagged_json

if TYPE_CHECKING:
    from email.policy import Policy


T = TypeVar("T")

Keep: TypeAlias = Callable[[bytes, str, str], str]
"""Stores content, with a file name and media type for people, and returns its digest."""
Fetch: TypeAlias = Callable[[str], bytes]
"""Returns stored content by its digest."""

INLINE = 4096
"""Longer text, in characters, is stored outside the JSON."""

_KNOWN_PACKAGES = ("django", "anymail", "email")

_STANDARD_ATTRIBUTES = frozenset(vars(Message()))
_POLICY_OPTIONS = (
    "max_line_length",
    "linesep",
    "cte_type",
    "raise_on_defect",
    "mangle_from_",
    "utf8",
    "refold_source",
)
_POLICIES: dict[str, Policy] = {"compat32": policies.compat32, "default": policies.default}


def pack(part: Message, keep: Keep) -> dict[str, Any]:
    """Return the JSON form of a MIME object; ``keep`` stores large content.

    Raises ``UnstorableMessage`` if the object could not be rebuilt exactly.
    """
    form: dict[str, Any] = {
        "class": class_path(type(part)),
        "policy": _pack_policy(part.policy),
        "headers": [[name, _pack_header(part, name, value)] for name, value in part.raw_items()],
        "payload": _pack_payload(part, keep),
    }
    rest = {
        "preamble": part.preamble,
        "epilogue": part.epilogue,
        "unixfrom": part.get_unixfrom(),
        "charset": tagged_json.encode(part.get_charset()),
    }
    form.update({name: value for name, value in rest.items() if value is not None})
    if part.get_default_type() != "text/plain":
        form["default_type"] = part.get_default_type()
    extra = {name: value for name, value in vars(part).items() if name not in _STANDARD_ATTRIBUTES}
    if extra:
        try:
            form["attributes"] = tagged_json.encode(extra)
        except tagged_json.UnencodableValue as error:
            raise _unstorable(part, f"one of its attributes contains a {error}") from None
    return form


def unpack(form: Mapping[str, Any], fetch: Fetch) -> Message:
    """Return the MIME object whose JSON form ``pack`` returned."""
    part = object.__new__(find_class(form["class"], Message) or MIMEPart)
    Message.__init__(part, _unpack_policy(form["policy"]))
    for name, value in form["headers"]:
        part.set_raw(name, _unpack_header(name, value))
    vars(part).update(
        _payload=_unpack_payload(form["payload"], fetch),
        _charset=tagged_json.decode(form.get("charset")),
        _unixfrom=form.get("unixfrom"),
        _default_type=form.get("default_type", "text/plain"),
        preamble=form.get("preamble"),
        epilogue=form.get("epilogue"),
    )
    vars(part).update(tagged_json.decode(form.get("attributes", {})))
    return part


def check_payloads(part: Message) -> None:
    """Raise ``InvalidMessage`` for a payload, also of a part in it, that Python could not write.

    ``email.generator`` writes multiparts and messages from lists, anything else from text that is
    ASCII or escaped bytes. A delivery status is written only from a list of its blocks, which
    Django 5.2 does not make of text.
    """
    for inner in part.walk():
        payload, kind = vars(inner)["_payload"], inner.get_content_type()
        is_text = isinstance(payload, str) and _is_writable(payload)
        if inner.get_content_maintype() == "multipart":
            is_valid = is_text or payload is None or isinstance(payload, list)
        elif kind.replace("_", "-") == "message/delivery-status":
            is_valid = isinstance(payload, list)
        elif inner.get_content_maintype() == "message":
            is_valid = is_text or (isinstance(payload, list) and bool(payload))
        else:
            is_valid = is_text or payload is None
        if not is_valid:
            raise InvalidMessage(
                f"An attachment of the type {kind} cannot be written from a payload of the type "
                f"{type(payload).__name__}: attach it as a MIME object that "
                "email.message_from_bytes() returns, or as application/octet-stream."
            )


def _is_writable(payload: str) -> bool:
    try:
        payload.encode("ascii", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True


def class_path(cls: type) -> str:
    """Return the import path of a class, as ``module:qualified.name``."""
    return f"{cls.__module__}:{cls.__qualname__}"


_DJANGOS: dict[str, Any] = {class_path(cls): cls for cls in (EmailMessage, EmailMultiAlternatives)}
"""The classes of nearly all messages, which are not looked for again with each."""


def find_class(path: str, base: type[T]) -> type[T] | None:
    """Return the subclass of ``base`` at ``module:qualified.name``, or ``None`` if none exists.

    Imports only modules that may hold classes of messages: to import a module is to run it, and a
    stored path may be somebody else's.
    """
    usual = _DJANGOS.get(path)
    if usual is not None and issubclass(usual, base):
        return usual  # type: ignore[no-any-return]
    module, _, name = path.partition(":")
    if not name or not _may_import(module):
        return None
    try:
        found = pkgutil.resolve_name(path)
    except Exception:  # noqa: BLE001 - to import a module is to run it, and it may need anything
        return None
    return found if isinstance(found, type) and issubclass(found, base) else None


def _may_import(module: str) -> bool:
    """Return whether a module is of an installed app, Django, anymail, ``email`` or the setting."""
    installed = (config.name for config in apps.get_app_configs())
    known = (*_KNOWN_PACKAGES, *installed, *conf.get().message_modules)
    return any(module == name or module.startswith(f"{name}.") for name in known)


def _pack_policy(policy: Policy) -> dict[str, Any]:
    name = "default" if isinstance(policy, policies.EmailPolicy) else "compat32"
    usual = _POLICIES[name]
    changed = {
        option: getattr(policy, option)
        for option in _POLICY_OPTIONS
        if getattr(policy, option, None) != getattr(usual, option, None)
    }
    return {"name": name, **changed}


def _unpack_policy(form: Mapping[str, Any]) -> Policy:
    options = dict(form)
    policy = _POLICIES[options.pop("name")]
    return policy.clone(**options) if options else policy


def _pack_header(part: Message, name: str, value: Any) -> Any:
    """Return text unchanged, and a parsed header, which folds differently, as a list."""
    if isinstance(value, Header):
        return tagged_json.encode(value)
    if not hasattr(value, "fold"):
        return str(value)
    form = [str(value)]
    # A part of the old policy has a parsed header once it was written under a new one.
    policy = part.policy if isinstance(part.policy, policies.EmailPolicy) else policies.SMTP
    if _unpack_header(name, form).fold(policy=policy) != value.fold(policy=policy):
        raise _unstorable(part, f"its header {name!r} cannot be rebuilt from its own text")
    return form


def _unpack_header(name: str, form: Any) -> Any:
    if isinstance(form, list):
        return policies.default.header_factory(name, form[0])
    return tagged_json.decode(form)


def _pack_payload(part: Message, keep: Keep) -> Any:
    """Return ``None``, text, a list of parts, or a reference to content stored outside the JSON."""
    payload = vars(part)["_payload"]
    if payload is None:
        return None
    if isinstance(payload, list) and all(isinstance(item, Message) for item in payload):
        return [pack(item, keep) for item in payload]
    if not isinstance(payload, str):
        raise _unstorable(part, f"its payload is of type {type(payload).__name__}")
    name_and_type = part.get_filename() or "", part.get_content_type()
    if (content := _base64_content(part, payload)) is not None:
        return {"base64": keep(content, *name_and_type)}
    if len(payload) > INLINE:
        return {"text": keep(payload.encode("utf-8", "surrogatepass"), *name_and_type)}
    return payload


def _unpack_payload(form: Any, fetch: Fetch) -> Any:
    if isinstance(form, list):
        return [unpack(item, fetch) for item in form]
    if not isinstance(form, dict):
        return form
    if "base64" in form:
        return encodebytes(fetch(form["base64"])).decode("ascii")
    return fetch(form["text"]).decode("utf-8", "surrogatepass")


def _base64_content(part: Message, payload: str) -> bytes | None:
    """Return the decoded base64 payload, or ``None`` if encoding it again gives different text."""
    if str(part.get("Content-Transfer-Encoding", "")).lower() != "base64":
        return None
    try:
        content = binascii.a2b_base64(payload)
    except ValueError:
        return None
    return content if encodebytes(content).decode("ascii") == payload else None


def _unstorable(part: Message, reason: str) -> UnstorableMessage:
    return UnstorableMessage(
        f"The attached {type(part).__name__} ({part.get_content_type()}) cannot be stored: "
        f"{reason}. Attach its content as bytes with a file name and a media type instead."
    )
