"""Small sites with real workers send twenty mails; each arrives once, at its first attempt."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.request import urlopen

import pytest

from devservers.process import wait_until
from devservers.smtp_faults import delay
from devservers.worker import Worker
from tests.acceptance.databases import Databases
from tests.acceptance.site import Site
from tests.outside.packages import Packages
from tests.outside.servers import WebServer
from tests.outside.sites import SITES, SmallSite, opened
from tests.outside.work import facts, send

MAILS = 20
PARTICULAR = [
    pytest.param(it, id=it.name, marks=[] if it.in_ci else pytest.mark.not_in_ci) for it in SITES
]


@pytest.mark.parametrize("row", PARTICULAR)
def test_each_mail_of_a_small_site_arrives_once(
    row: SmallSite, databases: Databases, packages: Packages, tmp_path: Path
) -> None:
    with opened(row, databases, packages, tmp_path) as (site, words):
        site.smtp.inject(delay(row.delay))
        worker = site.start_worker(**row.worker)
        assert row.banner in worker.log_text()
        if row.facts:
            assert row.facts.items() <= site.call(facts).items()
        if "kinds" in words:
            assert words["kinds"]() == {"emails": "quorum", "bulk_emails": "quorum"}
        send_mails(row, site)
        site.wait_for(sent=MAILS, timeout=30)
        wait_until(lambda: is_idle(worker), timeout=30, what="the worker to have done all rings")
        worker.stop(timeout=30)
        site.require_each_arrived_once(MAILS)
        assert site.fetch("SELECT count(*) FROM epica_mail_deliveryattempt") == [(MAILS,)]
        assert not re.findall(r"(?:ERROR|CRITICAL).*|Traceback", worker.log_text())


def is_idle(worker: Worker) -> bool:
    """Return whether the worker has done every task that it received."""
    log = worker.log_text()
    return len(re.findall(r"Task \S+ received", log)) == len(re.findall(r"Task \S+ succeeded", log))


def send_mails(row: SmallSite, site: Site) -> None:
    """Send by a process of the site, or by requests to its web server."""
    if not row.web:
        site.call(send, MAILS)
        return
    with WebServer(row.web, site.env, folder=site.folder) as web, ThreadPoolExecutor(5) as threads:
        pages = list(threads.map(lambda _: urlopen(web.url("/send/")).read(), range(MAILS)))
        assert pages == [b"sent"] * MAILS
