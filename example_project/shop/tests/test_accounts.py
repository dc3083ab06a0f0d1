# ruff: noqa: PT009
"""Test sign-up, login and Django's own password reset."""

import re

from django.contrib.auth.models import User
from django.test import TestCase
from django.urls import reverse

from django_epica_mail.testing import (
    assert_email_queued,
    assert_no_email_queued,
    drain_email_queue,
    queued_mail,
)

PASSWORD = "bir-uzun-parola-42"  # noqa: S105


@queued_mail()
class SignUpTests(TestCase):
    """A visitor becomes a customer."""

    def sign_up(self, **headers: str) -> None:
        """Submit the form with these headers."""
        form = {
            "username": "ayşe",
            "email": "ayse@example.com",
            "password1": PASSWORD,
            "password2": PASSWORD,
        }
        response = self.client.post(reverse("sign_up"), form, headers=headers)
        self.assertRedirects(response, reverse("home"))

    def test_sign_up_creates_logs_in_and_welcomes(self) -> None:
        self.sign_up()
        self.assertEqual(self.client.session["_auth_user_id"], str(User.objects.get().pk))
        assert_email_queued(
            1,
            subject="Welcome to Epica Shop, ayşe",
            to=["ayse@example.com"],
            body_contains="Hello ayşe,",
        )

    def test_the_welcome_is_in_the_visitors_language(self) -> None:
        self.sign_up(accept_language="tr")
        assert_email_queued(1, subject="Epica Shop’a hoş geldiniz, ayşe")  # noqa: RUF001

    def test_an_invalid_form_sends_nothing(self) -> None:
        response = self.client.post(reverse("sign_up"), {"username": "ayşe"})
        self.assertContains(response, "This field is required.")
        self.assertEqual(User.objects.count(), 0)
        assert_no_email_queued()


@queued_mail()
class PasswordResetTests(TestCase):
    """A customer resets a forgotten password."""

    @classmethod
    def setUpTestData(cls) -> None:
        cls.user = User.objects.create_user("ali", "ali@example.com", PASSWORD)

    def test_the_link_in_the_mail_sets_a_new_password(self) -> None:
        response = self.client.post(reverse("password_reset"), {"email": "ali@example.com"})
        self.assertRedirects(response, reverse("password_reset_done"))
        [message] = drain_email_queue()
        self.assertEqual(message.subject, "Your new password at Epica Shop")

        link = re.search(r"http://testserver(/accounts/reset/\S+)", message.body)
        assert link, message.body  # noqa: S101 - narrows the type
        page = self.client.get(link[1], follow=True)
        self.assertContains(page, "Choose a new password")

        new = "bambaşka-bir-parola-43"
        form = {"new_password1": new, "new_password2": new}
        response = self.client.post(page.request["PATH_INFO"], form)
        self.assertRedirects(response, reverse("password_reset_complete"))
        self.assertTrue(self.client.login(username="ali", password=new))

    def test_an_unknown_address_gets_nothing(self) -> None:
        response = self.client.post(reverse("password_reset"), {"email": "x@example.com"})
        self.assertRedirects(response, reverse("password_reset_done"))
        assert_no_email_queued()

    def test_a_forged_link_is_rejected(self) -> None:
        forged = reverse("password_reset_confirm", args=("MQ", "abc-123"))
        self.assertContains(self.client.get(forged), "This link no longer works")

    def test_login_and_password_change_pages_are_the_shops(self) -> None:
        self.assertContains(self.client.get(reverse("login")), "Forgotten your password?")
        self.client.force_login(self.user)
        page = self.client.get(reverse("password_change"))
        self.assertContains(page, "Choose a new password")
