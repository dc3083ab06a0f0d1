"""A Django message as it is stored: checked in the caller, kept intact, built again in the worker.

``check`` and ``dump`` are for who enqueues, ``load`` for who sends; ``encode`` and ``decode`` keep
the entries of a bulk call, which are no messages yet. What is stored is versioned JSON and the
contents it refers to; nothing is pickled, and no MIME is parsed again.
"""

from django_epica_mail.messages.codec import Blob, StoredMessage, dump, load
from django_epica_mail.messages.raw import RawMessage
from django_epica_mail.messages.tagged_json import UnencodableValue, decode, encode
from django_epica_mail.messages.validation import check

__all__ = [
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
