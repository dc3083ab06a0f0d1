# ruff: noqa: PT009
"""Test subscribing to the newsletter and sending it."""

from django.contrib.auth.models import User
from django.test import TestCase
from django.urls import reverse

from django_epica_mail.testing import (
    assert_email_queued,
    assert_no_email_queued,
    drain_email_queue,
    queued_mail,
)
from shop.models import NewsletterSubscription


@queued_mail()
class NewsletterTests(TestCase):
    """Visitors subscribe; staff send."""

    def test_a_subscription_stores_the_visitors_language(self) -> None:
        form = {"email": "ayse@example.com"}
        response = self.client.post(reverse("subscribe"), form, headers={"accept-language": "tr"})
        self.assertRedirects(response, reverse("home"))
        subscription = NewsletterSubscription.objects.get()
        self.assertEqual((subscription.email, subscription.language), ("ayse@example.com", "tr"))

    def test_an_address_can_subscribe_only_once(self) -> None:
        NewsletterSubscription.objects.create(email="ayse@example.com", language="tr")
        response = self.client.post(reverse("subscribe"), {"email": "ayse@example.com"})
        self.assertContains(response, "already exists")
        self.assertEqual(NewsletterSubscription.objects.count(), 1)

    def test_each_subscriber_gets_one_mail_in_their_language(self) -> None:
        NewsletterSubscription.objects.create(email="a@example.com", language="en")
        NewsletterSubscription.objects.create(email="b@example.com", language="tr")
        self.client.force_login(User.objects.create_superuser("staff"))
        form = {"subject": "Yaz indirimi", "text": "50 % & more"}
        response = self.client.post(reverse("newsletter"), form, follow=True)

        self.assertContains(response, "2 mails are on their way.")
        assert_email_queued(2, queue="bulk_emails")
        first, second = drain_email_queue()
        self.assertEqual((first.to, second.to), (["a@example.com"], ["b@example.com"]))
        self.assertEqual(first.subject, "Yaz indirimi")
        self.assertIn("50 % & more", first.body)
        self.assertIn("because a@example.com subscribed", first.body)
        self.assertIn("b@example.com adresi", second.body)

    def test_a_newsletter_without_subscribers_sends_nothing(self) -> None:
        self.client.force_login(User.objects.create_superuser("staff"))
        form = {"subject": "Yaz", "text": "indirim"}
        response = self.client.post(reverse("newsletter"), form, follow=True)
        self.assertContains(response, "0 mails are on their way.")
        assert_no_email_queued()

    def test_a_subject_with_a_line_break_is_rejected(self) -> None:
        self.client.force_login(User.objects.create_superuser("staff"))
        form = {"subject": "Yaz\nBcc: x@example.com", "text": "indirim"}
        self.client.post(reverse("newsletter"), form)
        assert_no_email_queued()

    def test_only_staff_may_send(self) -> None:
        self.client.force_login(User.objects.create_user("ali"))
        response = self.client.post(reverse("newsletter"), {"subject": "x", "text": "y"})
        self.assertEqual(response.status_code, 302)
        self.assertIn(reverse("admin:login"), response.url)
