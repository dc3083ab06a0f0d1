"""Reaches the Redis that Celery uses, in whatever way the site has told Celery to."""

from __future__ import annotations

import contextlib
from typing import Any

from celery.app import app_or_default

from django_epica_mail.broker import celery_config
from django_epica_mail.broker.publisher import bounded_connection

_SCHEMES = frozenset({"redis", "rediss", "sentinel"})


def is_redis() -> bool:
    """Return whether the site's broker is Redis, also behind Sentinel; asks no broker."""
    connection = app_or_default().connection_for_write()
    scheme = str(connection.transport_cls)
    return scheme in _SCHEMES or connection.transport.driver_type == "redis"


def connect() -> tuple[Any, str]:
    """Return a pool of connections to the first broker that answers, and the site's key prefix.

    They are made as kombu makes its own: with TLS, over a socket, through Sentinel, with the user
    of an ACL. Each step takes ``RING_TIMEOUT`` at most. Raises the error of the broker tried last.
    """
    app = app_or_default()
    last: Exception | None = None
    for url in celery_config.broker_urls(app):
        connection = bounded_connection(app, url)
        try:
            channel: Any = connection.default_channel  # which asks the broker
            return channel.pool, channel.global_keyprefix or ""
        except Exception as error:  # noqa: BLE001 - each driver raises its own
            last = error
        finally:
            with contextlib.suppress(Exception):
                connection.release()  # the pool connects again when it is used
    raise last or ConnectionError("The site configures no broker.")
