"""Rates are counted in the Redis that Celery uses, however the site spells it."""

from __future__ import annotations

import logging
import os
import re
import ssl
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from redis.exceptions import NoPermissionError

from devservers.process import free_port, wait_until
from devservers.redis import RedisServer, find_redis_binary
from django_epica_mail.broker import celery_config, redis_pool
from django_epica_mail.delivery.limits import rate_limits
from django_epica_mail.monitoring import celery_findings

Servers = Callable[..., RedisServer]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Servers]:
    """Start Redis servers with these directives, which end with the test."""
    started: list[RedisServer] = []

    def run(config: dict[str, str] | None = None, binary: Path | None = None) -> RedisServer:
        folder = tmp_path / f"redis{len(started)}"
        server = RedisServer(folder, config=config, binary=binary)
        started.append(server)
        server.start()
        return server

    yield run
    for server in reversed(started):
        server.kill()


@pytest.fixture
def use(monkeypatch, epica_mail) -> Iterator[Callable[..., Celery]]:
    """Make the current app one with this broker, and limit the transport ``smtp``."""

    def set_broker(url: str | list[str], **conf: Any) -> Celery:
        app = Celery("rates-tests", broker=url, set_as_current=False)
        app.conf.update(conf)
        for module in (celery_config, redis_pool):
            monkeypatch.setattr(module, "app_or_default", lambda: app)
        rate_limits._budgets.clear()
        epica_mail(RATES={"smtp": "2/h"}, RATES_STORAGE=None)
        return app

    yield set_broker
    rate_limits._budgets.clear()


def certificate(folder: Path) -> tuple[Path, Path]:
    """Write a certificate of 127.0.0.1, signed by its own key; return both files."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    address = x509.IPAddress(ip_address("127.0.0.1"))
    now = datetime.now(timezone.utc)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem, key_file = folder / "redis.pem", folder / "redis.key"
    pem.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return pem, key_file


def tls(start: Servers, folder: Path) -> tuple[int, Path]:
    """Start a server that speaks TLS too; return its port and what to trust."""
    pem, key = certificate(folder)
    port = free_port()
    config = {"tls-port": str(port), "tls-cert-file": str(pem), "tls-key-file": str(key)}
    start({**config, "tls-ca-cert-file": str(pem), "tls-auth-clients": "no"})
    return port, pem


def plain(start: Servers, folder: Path) -> dict[str, Any]:
    return {"url": start().url(3)}


def acl_with_prefix(start: Servers, folder: Path) -> dict[str, Any]:
    keys = "~shop:* &* +@all -@admin -@dangerous +info"
    server = start({"user": f"worker on >p%40ss {keys}"})
    url = f"redis://worker:p%2540ss@127.0.0.1:{server.port}/0"
    return {"url": url, "broker_transport_options": {"global_keyprefix": "shop:"}}


def unix_socket(start: Servers, folder: Path) -> dict[str, Any]:
    path = Path(os.path.relpath(folder)) / "s" if len(str(folder)) > 90 else folder / "s"
    start({"unixsocket": str(path.resolve())})
    return {"url": f"redis+socket://{path.resolve()}?virtual_host=2"}


def tls_in_the_url(start: Servers, folder: Path) -> dict[str, Any]:
    port, pem = tls(start, folder)
    query = f"ssl_cert_reqs=CERT_REQUIRED&ssl_ca_certs={pem}"
    return {"url": f"rediss://127.0.0.1:{port}/0?{query}"}


def tls_without_verification(start: Servers, folder: Path) -> dict[str, Any]:
    port, _ = tls(start, folder)
    return {"url": f"rediss://127.0.0.1:{port}/0?ssl_cert_reqs=none"}


def tls_in_the_settings(start: Servers, folder: Path) -> dict[str, Any]:
    port, pem = tls(start, folder)
    options = {"ssl_cert_reqs": ssl.CERT_REQUIRED, "ssl_ca_certs": str(pem)}
    return {"url": f"redis://127.0.0.1:{port}/0", "broker_use_ssl": options}


def first_is_down(start: Servers, folder: Path) -> dict[str, Any]:
    return {"url": [f"redis://127.0.0.1:{free_port()}/0", start().url()]}


def sentinel(start: Servers, folder: Path) -> dict[str, Any]:
    master = start()
    binary = folder / "redis-sentinel"  # the name makes it one
    binary.symlink_to(find_redis_binary())
    watch = {"sentinel monitor": f"mymaster 127.0.0.1 {master.port} 1"}
    nodes = [start(watch, binary) for _ in range(2)]
    urls = ";".join(f"sentinel://127.0.0.1:{node.port}/0" for node in nodes)
    return {"url": urls, "broker_transport_options": {"master_name": "mymaster"}}


SPELLINGS = (
    *(plain, acl_with_prefix, unix_socket, first_is_down, sentinel),
    *(tls_in_the_url, tls_without_verification, tls_in_the_settings),
)


@pytest.mark.parametrize("spelling", SPELLINGS, ids=lambda it: it.__name__)
def test_rates_count_in_the_redis_that_celery_uses(start, use, tmp_path, spelling) -> None:
    use(**spelling(start, tmp_path))
    assert rate_limits.problem() is None
    assert rate_limits.store_problem() is None
    assert list(celery_findings.of_rates()) == []
    assert [rate_limits.take("smtp", [f"{n}@example.com"]) for n in range(2)] == [None, None]
    refused = rate_limits.take("smtp", ["3@example.com"])
    assert refused is not None
    assert refused.seconds > 3000
    assert rate_limits.allowance("smtp") == 0


def test_when_the_broker_is_lost_rates_go_on_in_another(start, use) -> None:
    first, second = start(), start()
    use([first.url(), second.url()])
    rate_limits.take("smtp", ["a@example.com"])
    assert rate_limits.allowance("smtp") == 1
    first.kill()
    assert rate_limits.allowance("smtp") == 2


def test_a_store_that_is_lost_is_spoken_of_once_a_pause(start, use, epica_mail, caplog) -> None:
    server = start()
    use(server.url())
    epica_mail(RING_PAUSE=1, RING_TIMEOUT=0.2)
    server.pause()
    try:
        with caplog.at_level(logging.WARNING):
            assert [rate_limits.allowance("smtp") for _ in range(20)] == [0] * 20
            started = time.monotonic()
            assert rate_limits.seconds_until("smtp") > 0
            assert rate_limits.take("smtp", ["a@example.com"]) is not None
            assert time.monotonic() - started < 0.1, "it is left alone for a while"
        assert len([it for it in caplog.records if "rate limits" in it.getMessage()]) == 1
    finally:
        server.resume()
    wait_until(lambda: rate_limits.allowance("smtp") == 2, timeout=5, what="the store to be back")


def test_the_doctor_tries_the_store(start, use) -> None:
    server = start({"user": "worker on >secret ~emails* +@all"})
    use(f"redis://worker:secret@127.0.0.1:{server.port}/0")
    (finding,) = celery_findings.of_rates()
    assert (finding.level, finding.id) == ("error", "rates-store")
    assert "Celery's Redis" in finding.text
    assert "evalsha" in finding.remedy
    assert "secret" not in finding.text


def test_no_message_holds_the_password_of_broker_or_store(use, epica_mail) -> None:
    use("amqp://user:broker-secret@127.0.0.1:1//")
    assert rate_limits.problem() == "the broker is no Redis, and RATES_STORAGE names none."
    for uri in ("amqp://user:store-secret@host//", "redis://user:store-secret@host:port/0"):
        rate_limits._budgets.clear()
        epica_mail(RATES_STORAGE=uri)
        problem = rate_limits.problem()
        assert problem is not None
        assert "secret" not in problem


def test_the_acl_in_the_production_guide_lets_web_ring_and_workers_run(start: Servers) -> None:
    """Also with a default queue of another name, which the guide says to put in place of celery."""
    page = Path(__file__).parents[3] / "docs" / "how-to" / "production.md"
    users = re.findall(r"^user ((?:web|worker) .*)$", page.read_text("utf-8"), re.MULTILINE)
    server = start()
    with server.client() as client:
        for user in users:
            rules = user.replace("~celery*", "~shop*").split()
            client.execute_command("ACL", "SETUSER", *rules)
    web, worker = (
        Celery(
            "acl-tests",
            broker=f"redis://{user}:{user.upper()}-PASSWORD@127.0.0.1:{server.port}/0",
            set_as_current=False,
        )
        for user in ("web", "worker")
    )
    web.send_task("ring", queue="emails", ignore_result=True)
    with web.connection_for_read() as connection, pytest.raises(NoPermissionError):
        connection.SimpleQueue("emails").get(timeout=1)
    with worker.connection_for_read() as connection:
        # What a worker does when it starts: it listens to the events of the others.
        worker.events.Receiver(connection).queue.bind(connection.default_channel).declare()
        message = connection.SimpleQueue("emails").get(timeout=5)
        assert message.headers["task"] == "ring"
        message.ack()
