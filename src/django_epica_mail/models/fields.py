"""Columns of text, and of ids, that any content of the database leaves readable.

Copies of what a mail says lose what their database cannot store.

The mail itself is stored as ASCII, whole on every database. Its copies, for lists and for search,
and the words of servers may have any character. MariaDB and MySQL refuse a statement with one that
the column's character set lacks, and PostgreSQL one that its encoding lacks.
"""

from __future__ import annotations

import codecs
import hashlib
import re
import unicodedata
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from uuid import UUID

from django.db import models

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

BMP = "utf8mb3"
"""MySQL's UTF-8 of three bytes at most, which ends at U+FFFF."""

_BEYOND_BMP = re.compile(r"[^\0-\uffff]")
_CODECS = {"latin1": "cp1252", "utf8": BMP, BMP: BMP}
"""What Python calls the character sets of MySQL that it knows by other names, or not at all."""

_OF_COLUMN = (
    "SELECT character_set_name FROM information_schema.columns WHERE table_schema = DATABASE() "
    "AND table_name = 'epica_mail_emaillog' AND column_name = 'subject'"
)
_known: dict[tuple[str, str], str | None] = {}


class Unseen(models.Field):  # type: ignore[type-arg]
    """A mixin for a field that migrations know as Django's."""

    def deconstruct(self) -> Any:
        name, _path, args, options = super().deconstruct()
        return name, f"django.db.models.{self.get_internal_type()}", args, options


class _Readable(Unseen):
    """A mixin for text that is read as text: SQLite stores bytes in any column."""

    def get_db_converters(self, connection: BaseDatabaseWrapper) -> Any:
        own = super().get_db_converters(connection)
        return [*own, _as_text] if connection.vendor == "sqlite" else own


class Line(_Readable, models.CharField):  # type: ignore[type-arg]
    """A ``CharField`` that is read as text."""


class Text(_Readable, models.TextField):  # type: ignore[type-arg]
    """A ``TextField`` that is read as text."""


def _as_text(value: Any, expression: Any, connection: BaseDatabaseWrapper) -> Any:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


class Key(models.UUIDField):  # type: ignore[type-arg]
    """A ``UUIDField`` whose rows are read whatever it holds.

    SQLite and MySQL have no type for it. What somebody has written there that is no UUID, or one
    spelt otherwise, is read as a UUID that no row has, and fails nobody who reads the rows beside.
    """

    def deconstruct(self) -> Any:
        """Return it as migrations know it: Django's."""
        name, _path, args, options = super().deconstruct()
        return name, "django.db.models.UUIDField", args, options

    def get_internal_type(self) -> str:
        """Return a type of which Django's backends convert nothing."""
        return "Key"

    def db_type(self, connection: BaseDatabaseWrapper) -> str | None:
        """Return the type of a ``UUIDField``."""
        return models.UUIDField().db_type(connection)

    def get_db_converters(self, connection: BaseDatabaseWrapper) -> Any:
        """Return what makes a UUID; PostgreSQL's driver does."""
        return [] if connection.vendor == "postgresql" else [_as_key]


_NO_KEY = (2**64 - 1) << 64
"""What stands for an id that is none begins with 64 ones, as nothing that ``uuid7`` makes."""


def is_no_key(key: UUID) -> bool:
    """Return whether an id was read from what is none, so that no query finds its row."""
    return key.int >= _NO_KEY


def key_of(written: Any, *, is_native: bool = False) -> UUID:
    """Return the id that a database has; ``is_native`` says that it has a type for it."""
    with suppress(ValueError, TypeError, AttributeError):
        key = UUID(written)
        if written == (str(key) if is_native else key.hex):
            return key
    digest = hashlib.sha256(str(written).encode(errors="replace")).digest()
    return UUID(int=_NO_KEY | int.from_bytes(digest[:8], "big"))


def _as_key(value: Any, expression: Any, connection: BaseDatabaseWrapper) -> UUID | None:
    if value is None or isinstance(value, UUID):
        return value
    return key_of(value, is_native=connection.features.has_native_uuid_field)


class _Copy(_Readable):
    """A mixin for a field that loses what its database cannot store."""

    def get_db_prep_value(
        self, value: Any, connection: BaseDatabaseWrapper, prepared: bool = False
    ) -> Any:
        return storable(super().get_db_prep_value(value, connection, prepared), connection)


class CopyTextField(_Copy, models.TextField):  # type: ignore[type-arg]
    """A ``TextField`` that loses what its database cannot store."""


class CopyCharField(_Copy, models.CharField):  # type: ignore[type-arg]
    """A ``CharField`` that loses what its database cannot store."""


def alike(text: str, connection: BaseDatabaseWrapper) -> str:
    """Return what text has in common with all that its database takes for the same.

    MySQL and MariaDB compare without regard to case, accents and spaces at the end, unless their
    collation is binary; other databases compare exactly. What a message names is no text at times.
    """
    if connection.vendor != "mysql" or not isinstance(text, str):
        return text
    folded = unicodedata.normalize("NFKD", text.casefold())
    return "".join(it for it in folded if not unicodedata.combining(it)).rstrip(" ")


class Exactly(models.Func):
    """A column of text that is compared exactly, whatever its collation takes for the same.

    No index serves it: compare the column itself as well.
    """

    arity = 1
    template = "%(expressions)s"

    def as_mysql(self, compiler: Any, connection: BaseDatabaseWrapper, **context: Any) -> Any:
        template = "CONVERT(%(expressions)s USING utf8mb4) COLLATE utf8mb4_bin"
        return self.as_sql(compiler, connection, template=template, **context)


def storable(value: Any, connection: BaseDatabaseWrapper) -> Any:
    """Return text with a question mark for each character that the database cannot store."""
    if not isinstance(value, str) or value.isascii():
        return value
    charset = charset_of(connection)
    if charset is None:
        return value
    if charset == BMP:
        return _BEYOND_BMP.sub("?", value)
    return value.encode(charset, "replace").decode(charset)


def charset_of(connection: BaseDatabaseWrapper) -> str | None:
    """Return ``BMP`` or the Python codec of the text that a database stores.

    ``None`` is every character, or a character set that Python does not know. It is asked for once
    in a process.
    """
    key = connection.alias, str(connection.settings_dict["NAME"])
    if key not in _known:
        name = _named(connection)
        if name is None:
            return None  # not known yet: there is no table
        name = name.lower().replace("win", "cp")  # windows-1254 is WIN1254 to PostgreSQL
        if connection.vendor == "mysql":
            name = _CODECS.get(name, name)
        _known[key] = name if name == BMP else _codec(name)
    return _known[key]


def _codec(name: str) -> str | None:
    try:
        codec = codecs.lookup(name).name
    except LookupError:  # such as utf8mb4, or SQL_ASCII, which stores anything
        return None
    return None if codec == "utf-8" else codec


def _named(connection: BaseDatabaseWrapper) -> str | None:
    """Return the database's own name of the character set, by the driver and not as a query."""
    if connection.vendor not in ("mysql", "postgresql"):
        return "utf-8"
    connection.ensure_connection()
    driver: Any = connection.connection
    if connection.vendor == "postgresql":
        status = getattr(driver, "info", driver)
        ask = getattr(status, "parameter_status", None) or driver.get_parameter_status
        return str(ask("server_encoding"))
    with suppress(Exception), driver.cursor() as cursor:  # each driver has errors of its own
        cursor.execute(_OF_COLUMN)
        found = cursor.fetchone()
        return str(found[0]) if found else None
    return None
