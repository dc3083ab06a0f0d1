"""Small sites as people run them; what is tried is a row of ``SITES``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from devservers.rabbitmq import RabbitMQServer
from devservers.redis import RedisServer
from tests.acceptance.databases import Databases
from tests.acceptance.places import EXAMPLE_PROJECT, REPOSITORY
from tests.acceptance.site import Site
from tests.integration.broker.test_redis_pool import sentinel, tls_in_the_url
from tests.outside.packages import Packages
from tests.outside.servers import PgBouncer

INSIDE = Path(__file__).parent / "inside"

Server = Callable[[Site, ExitStack], Mapping[str, Any]]
"""Starts a server for a site until the end of the stack; returns words for its settings."""


def pgbouncer(site: Site, stack: ExitStack) -> Mapping[str, Any]:
    """Start pgbouncer before the site's PostgreSQL."""
    postgres = urlsplit(site.database_url).port
    assert postgres is not None
    return {"port": stack.enter_context(PgBouncer(site.folder, postgres=postgres)).port}


def rabbitmq(site: Site, stack: ExitStack) -> Mapping[str, Any]:
    """Start RabbitMQ."""
    server = stack.enter_context(RabbitMQServer(site.folder))

    def kinds() -> dict[str, str]:
        """Return the kinds of the queues of mail, by name."""
        found = server.output("list_queues", "--quiet", "--no-table-headers", "name", "type")
        kinds = dict(line.split() for line in found.splitlines())
        return {name: kinds[name] for name in ("emails", "bulk_emails")}

    return {"url": server.url(), "kinds": kinds}


def _redis(make: Callable[..., dict[str, Any]]) -> Server:
    def start(site: Site, stack: ExitStack) -> Mapping[str, Any]:
        numbers = iter(range(9))

        def run(config: dict[str, str] | None = None, binary: Path | None = None) -> RedisServer:
            folder = site.folder / f"redis{next(numbers)}"
            return stack.enter_context(RedisServer(folder, config=config, binary=binary))

        return make(run, site.folder)

    return start


@dataclass(frozen=True)
class SmallSite:
    """A site with one thing that is particular."""

    name: str
    settings: str = ""
    """Lines of its settings module; ``{words}`` are those of its server."""
    worker: Mapping[str, Any] = field(default_factory=dict)
    """Options of ``devservers.worker.Worker``."""
    server: Server | None = None
    needs: tuple[str, ...] = ()
    """Packages in other versions than the environment's."""
    web: tuple[str, ...] = ()
    """The command of the web server by which mail is sent."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What ``work.facts`` must say of the site, so that it is what its name says."""
    banner: str = ""
    """What the worker must say of itself."""
    delay: float = 0
    """Seconds that the SMTP server takes for each mail."""
    in_ci: bool = False


_POOL = 'DATABASES["default"]["OPTIONS"]["pool"] = {{"min_size": 1, "max_size": 4}}'
_SERIALIZABLE = """from psycopg import IsolationLevel
DATABASES["default"]["OPTIONS"]["isolation_level"] = IsolationLevel.SERIALIZABLE
DATABASES["default"]["OPTIONS"]["options"] = "-c default_transaction_isolation=serializable"
"""
_PGBOUNCER = """DATABASES["default"]["PORT"] = {port}
DATABASES["default"]["DISABLE_SERVER_SIDE_CURSORS"] = True"""
_BROKER = 'CELERY_BROKER_URL = "{url}"'
_SENTINEL = f"""{_BROKER}
CELERY_BROKER_TRANSPORT_OPTIONS = {{broker_transport_options}}"""
_QUORUM = f"""{_BROKER}
CELERY_BROKER_TRANSPORT_OPTIONS = {{{{"confirm_publish": True}}}}
CELERY_TASK_DEFAULT_QUEUE_TYPE = "quorum"
CELERY_TASK_CREATE_MISSING_QUEUE_TYPE = "quorum"
CELERY_WORKER_DETECT_QUORUM_QUEUES = True"""
_MSGPACK = """CELERY_TASK_SERIALIZER = CELERY_RESULT_SERIALIZER = "msgpack"
CELERY_ACCEPT_CONTENT = ["msgpack"]"""

SITES = (
    SmallSite("psycopg pool", _POOL, facts={"pool": True}, in_ci=True),
    SmallSite(
        "pgbouncer, transaction mode",
        _PGBOUNCER,
        server=pgbouncer,
        facts={"is_behind_a_proxy": True},
        in_ci=True,
    ),
    SmallSite(
        "SERIALIZABLE",
        _SERIALIZABLE,
        worker={"concurrency": 4},
        facts={"isolation": "serializable"},
    ),
    SmallSite("quorum queues", _QUORUM, server=rabbitmq, banner="amqp://"),
    SmallSite(
        "key prefix",
        'CELERY_BROKER_TRANSPORT_OPTIONS = {{"global_keyprefix": "shop:"}}',
        facts={"key_prefix": "shop:"},
    ),
    SmallSite("rediss://", _BROKER, server=_redis(tls_in_the_url), banner="rediss://"),
    SmallSite("Sentinel", _SENTINEL, server=_redis(sentinel), banner="sentinel://"),
    SmallSite(
        "gevent", worker={"pool": "gevent", "concurrency": 10}, banner="10 (gevent)", in_ci=True
    ),
    SmallSite("eventlet", worker={"pool": "eventlet", "concurrency": 10}, banner="10 (eventlet)"),
    SmallSite("threads", worker={"pool": "threads", "concurrency": 4}, banner="4 (thread)"),
    SmallSite(
        "max_tasks_per_child=1",
        "CELERY_WORKER_MAX_TASKS_PER_CHILD = 1",
        facts={"worker_max_tasks_per_child": 1},
    ),
    SmallSite(
        "acks_late",
        "CELERY_TASK_ACKS_LATE = CELERY_TASK_REJECT_ON_WORKER_LOST = True",
        facts={"task_acks_late": True},
    ),
    SmallSite(
        "time limits",
        "CELERY_TASK_TIME_LIMIT = CELERY_TASK_SOFT_TIME_LIMIT = 1",
        worker={"concurrency": 1},
        facts={"task_time_limit": 1},
        delay=0.3,
    ),
    SmallSite("msgpack", _MSGPACK, facts={"task_serializer": "msgpack"}),
    SmallSite(
        "--autoscale",
        worker={"extra_args": ("--autoscale", "3,1")},
        banner="{min=1, max=3}",
    ),
    SmallSite("Celery 5.5.3", needs=("celery[redis]==5.5.3",), banner="v5.5.3 "),
    SmallSite("Celery 5.6", needs=("celery[redis]~=5.6.0",), banner="v5.6."),
    SmallSite("Celery, newest", needs=("celery[redis]>=5.7",), banner="v5."),
    SmallSite("uvicorn", web=("-m", "uvicorn", "shopsite.asgi:application", "--port", "{port}")),
    SmallSite(
        "gunicorn", web=("-m", "gunicorn", "-w", "2", "-b", "127.0.0.1:{port}", "shopsite.wsgi")
    ),
    SmallSite(
        "gunicorn --preload",
        web=("-m", "gunicorn", "--preload", "-w", "2", "-b", "127.0.0.1:{port}", "shopsite.wsgi"),
        in_ci=True,
    ),
)


@contextmanager
def opened(
    row: SmallSite, databases: Databases, packages: Packages, folder: Path
) -> Iterator[tuple[Site, Mapping[str, Any]]]:
    """Open a small site with its servers, but without a worker or a web server.

    Yields the words of its server too.
    """
    overlay = packages.overlay(*row.needs)
    places = [*overlay.values(), str(REPOSITORY), str(EXAMPLE_PROJECT), str(INSIDE), str(folder)]
    env = {
        "DJANGO_SETTINGS_MODULE": "small_site",
        "PYTHONPATH": ":".join(places),
        "PYTHONWARNINGS": "ignore",  # other people's software has its own
    }
    site = Site(databases, "postgresql", folder, {}, env)
    with ExitStack() as stack:
        stack.callback(site.close)
        words = row.server(site, stack) if row.server else {}
        lines = ["from shopsite.settings import *", 'ROOT_URLCONF = "outside_urls"']
        lines.append(row.settings.format(**words))
        (folder / "small_site.py").write_text("\n".join(lines))
        yield site, words
