"""Stores Django messages: checked in the caller, kept without loss, rebuilt in the worker.

Enqueueing uses ``check`` and ``dump``; sending uses ``load``. ``encode`` and ``decode`` store the
entries of a bulk call, which are not messages yet. The stored form is versioned JSON plus the
attachments it refers to; nothing is pickled, and no MIME is parsed again.
"""

from django_epica_mail.messages.codec import AbsentAttachments, Blob, StoredMessage, dump, load
from django_epica_mail.messages.raw import RawMessage
from django_epica_mail.messages.tagged_json import UnencodableValue, decode, encode
from django_epica_mail.messages.validation import check

__all__ = [
    "AbsentAttachments",
    "Blob",
    "RawMessage",
    "StoredMessage",
    "UnencodableValue",
    "check",
    "decode",
    "dump",
    "encode",
    "load",
]
