"""The recipients on an e-mail's page: their other e-mails, and their suppression."""

from __future__ import annotations

from django_epica_mail import suppression
from tests.integration.admin.pages import client_of, html_of, url


def test_an_address_leads_to_its_other_mails(viewer, queue_mail) -> None:
    mail = queue_mail("a+b@example.com")
    html = html_of(viewer, "emaillog_change", mail.pk)
    assert f'href="{url("emaillog_changelist")}?q=a%2Bb%40example.com"' in html


def test_a_suppressed_address_leads_to_its_entries_for_those_who_may_see_them(
    site, queue_mail
) -> None:
    mail = queue_mail("Ayse@example.com", "other@example.com")
    suppression.add("ayse@example.com", reason="bounce")
    link = f'href="{url("suppression_changelist")}?q='
    html = html_of(client_of("view_emaillog", "view_suppression"), "emaillog_change", mail.pk)
    assert html.count(link) == 1
    assert "suppressed: bounced for good" in html
    assert link not in html_of(client_of("view_emaillog"), "emaillog_change", mail.pk)


def test_the_suppression_list_is_asked_once(
    superuser, queue_mail, django_assert_max_num_queries
) -> None:
    mail = queue_mail(*(f"r{number}@example.com" for number in range(50)))
    with django_assert_max_num_queries(14):
        html_of(superuser, "emaillog_change", mail.pk)
