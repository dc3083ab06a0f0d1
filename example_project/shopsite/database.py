"""Convert a database URL to an entry of Django's `DATABASES`."""

from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from django.core.exceptions import ImproperlyConfigured


def database_from_url(url: str) -> dict[str, Any]:
    """
    Return the `DATABASES` entry for `sqlite:///abs/path` or `postgres://user:pass@host:port/name`.

    `mysql://` works like `postgres://`. `?host=/socket/dir` connects to PostgreSQL over a socket;
    its other query values become OPTIONS. Raise `ImproperlyConfigured` for any other scheme.
    """
    parts = urlsplit(url)
    if parts.scheme == "sqlite":
        return sqlite(unquote(parts.path))
    if parts.scheme in {"postgres", "postgresql"}:
        options = dict(parse_qsl(parts.query))
        return {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": unquote(parts.path.lstrip("/")),
            "USER": unquote(parts.username or ""),
            "PASSWORD": unquote(parts.password or ""),
            "HOST": options.pop("host", parts.hostname or ""),
            "PORT": options.pop("port", parts.port or ""),
            "OPTIONS": options,
        }
    if parts.scheme == "mysql":
        return {
            "ENGINE": "django.db.backends.mysql",
            "NAME": unquote(parts.path.lstrip("/")),
            "USER": unquote(parts.username or ""),
            "PASSWORD": unquote(parts.password or ""),
            "HOST": parts.hostname or "",
            "PORT": str(parts.port or ""),
        }
    raise ImproperlyConfigured(
        f"SHOP_DATABASE_URL has the scheme {parts.scheme!r}; use sqlite:///path, postgres:// or mysql://."
    )


def sqlite(path: str) -> dict[str, Any]:
    """
    Return a `DATABASES` entry for SQLite with several writing processes.

    IMMEDIATE takes the write lock at BEGIN, where SQLite waits for it; a lock taken later in the
    transaction fails immediately (https://docs.djangoproject.com/en/stable/ref/databases/).
    """
    return {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": path,
        "OPTIONS": {
            "transaction_mode": "IMMEDIATE",
            "timeout": 20,
            "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;",
        },
    }
