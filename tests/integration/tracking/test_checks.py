"""System checks of bounces and evidence."""

from __future__ import annotations

import pytest

from django_epica_mail.tracking.checks import check_bounces, check_evidence


@pytest.mark.parametrize("path", ["shop.nowhere.ask", "django.VERSION", "nodots"])
def test_e061_evidence_that_names_no_function(epica_mail, path: str) -> None:
    epica_mail(EVIDENCE=path)
    (message,) = check_evidence()
    assert message.id == "epica_mail.E061"
    assert path in message.msg


def test_evidence_that_names_a_function_is_not_reported(epica_mail) -> None:
    epica_mail(EVIDENCE="tests.integration.tracking.test_evidence.answer")
    assert list(check_evidence()) == []


def test_without_a_mailbox_no_bounce_is_expected() -> None:
    assert list(check_bounces()) == []
