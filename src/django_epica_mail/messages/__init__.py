"""Stores Django messages: checked in the caller, kept without loss, rebuilt in the worker.

Enqueueing uses ``check`` and ``dump``; sending uses ``load``. ``encode`` and ``decode`` store the
entries of a bulk call, which are not messages yet. The stored form is versioned JSON plus the
attachments it refers to; nothing is pickled, and no MIME is parsed again.
"""

from django_epica_mail.messages.codec import (
    AbsentAttachments,
    Blob,
    StoredMessage,
    Terms,
    dump,
    load,
)
from django_epica_mail.messages.raw import RawMessage
from django_epica_mail.messages.tagged_json import UnencodableValue, decode, encode
from django_epica_mail.messages.validation import Rules, check, check_injection, is_simple

__all__ = [
    "AbsentAttachments",
    "Blob",
    "RawMessage",
    "Rules",
    "StoredMessage",
    "Terms",
    "UnencodableValue",
    "check",
    "check_injection",
    "decode",
    "dump",
    "encode",
    "is_simple",
    "load",
]
