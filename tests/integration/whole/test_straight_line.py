"""The path of a mail through the code is short enough to follow in one stack trace."""

from __future__ import annotations

import smtplib
import traceback
from pathlib import PurePath
from typing import Any

import pytest

import django_epica_mail
from django_epica_mail import tasks

_OURS = PurePath(django_epica_mail.__file__).parent


@pytest.fixture
def stacks(monkeypatch: pytest.MonkeyPatch) -> list[traceback.StackSummary]:
    """Record the stack of each call of smtplib, and make the call."""
    noted: list[traceback.StackSummary] = []
    real = smtplib.SMTP.sendmail

    def sendmail(self: smtplib.SMTP, *args: Any, **kwargs: Any) -> Any:
        noted.append(traceback.extract_stack())
        return real(self, *args, **kwargs)

    monkeypatch.setattr(smtplib.SMTP, "sendmail", sendmail)
    return noted


def test_a_mail_passes_few_modules_from_task_to_smtplib(smtp, queue_mail, stacks) -> None:
    queue_mail()
    assert tasks.deliver_emails.apply(args=("emails",)).get() == 1
    (stack,) = stacks
    ours = [PurePath(frame.filename) for frame in stack]
    modules = [path.relative_to(_OURS).as_posix() for path in ours if _OURS in path.parents]
    assert list(dict.fromkeys(modules)) == [
        "tasks.py",
        "delivery/worker.py",
        "delivery/sender.py",
        "transports/connection.py",
        "transports/smtp.py",
    ]
    assert len(modules) <= 10, "our functions on the path"
    assert len(smtp.accepted) == 1
