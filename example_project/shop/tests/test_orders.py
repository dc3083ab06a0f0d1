# ruff: noqa: PT009, PT027
"""Test orders: rows and confirmation are stored together or not at all."""

from decimal import Decimal

from django.contrib.auth.models import User
from django.db import DatabaseError, transaction
from django.test import TestCase
from django.urls import reverse

from django_epica_mail.testing import (
    assert_email_queued,
    assert_no_email_queued,
    drain_email_queue,
    fail_delivery,
    queued_mail,
    travel,
)
from shop.models import Order, Product
from shop.orders import OutOfStockError, place_order


@queued_mail()
class OrderTests(TestCase):
    """A customer orders."""

    @classmethod
    def setUpTestData(cls) -> None:
        cls.customer = User.objects.create_user("ali", "ali@example.com")
        cls.tea = Product.objects.create(name="Çay <1 kg>", price=Decimal("45.50"), stock=10)
        cls.pot = Product.objects.create(name="Cezve", price=Decimal("420.00"), stock=1)

    def setUp(self) -> None:
        self.client.force_login(self.customer)

    def field(self, product: Product) -> str:
        """Return the name of a product's form field."""
        return f"quantity-{product.pk}"

    def test_an_order_is_stored_and_confirmed_in_text_and_html(self) -> None:
        form = {self.field(self.tea): "2", self.field(self.pot): "1"}
        response = self.client.post(reverse("order"), form)

        order = Order.objects.get()
        self.assertRedirects(response, reverse("order_detail", args=[order.pk]))
        self.assertEqual(order.total(), Decimal("511.00"))
        self.tea.refresh_from_db()
        self.assertEqual(self.tea.stock, 8)

        [message] = drain_email_queue()
        self.assertEqual(message.to, ["ali@example.com"])
        self.assertEqual(message.subject, f"Your order #{order.pk}")
        self.assertIn("2 × Çay <1 kg>: 91.00 ₺", message.body)  # noqa: RUF001
        [(html, kind)] = message.alternatives
        self.assertEqual(kind, "text/html")
        self.assertIn("Çay &lt;1 kg&gt;", html)
        self.assertIn("511.00 ₺", html)

    def test_the_confirmation_is_in_the_customers_language(self) -> None:
        form = {self.field(self.tea): "1"}
        self.client.post(reverse("order"), form, headers={"accept-language": "tr"})
        expected = f"Siparişiniz: {Order.objects.get()}"
        assert_email_queued(1, subject=expected)

    def test_an_order_beyond_the_stock_is_rolled_back(self) -> None:
        form = {self.field(self.tea): "1", self.field(self.pot): "2"}
        response = self.client.post(reverse("order"), form)
        self.assertContains(response, "Too few are left of “Cezve”.")
        self.assertEqual(Order.objects.count(), 0)
        self.tea.refresh_from_db()
        self.assertEqual(self.tea.stock, 10)

    def test_the_out_of_stock_error_names_the_product(self) -> None:
        with self.assertRaisesMessage(OutOfStockError, "'Cezve'"):
            place_order(self.customer, {self.pot: 2})

    def test_an_empty_order_is_rejected(self) -> None:
        response = self.client.post(reverse("order"), {self.field(self.tea): "0"})
        self.assertContains(response, "Choose at least one product.")
        assert_no_email_queued()

    def test_ordering_requires_login(self) -> None:
        self.client.logout()
        response = self.client.post(reverse("order"), {self.field(self.tea): "1"})
        self.assertRedirects(response, f"{reverse('login')}?next={reverse('order')}")
        self.assertEqual(Order.objects.count(), 0)

    def test_only_the_customer_sees_an_order(self) -> None:
        order = place_order(self.customer, {self.tea: 1})
        page = reverse("order_detail", args=[order.pk])
        self.assertContains(self.client.get(page), "Çay &lt;1 kg&gt;")
        self.client.force_login(User.objects.create_user("veli"))
        self.assertEqual(self.client.get(page).status_code, 404)

    def test_the_stock_cannot_become_negative(self) -> None:
        with self.assertRaises(DatabaseError), transaction.atomic():
            Product.objects.filter(pk=self.pot.pk).update(stock=-1)


@queued_mail()
class ConfirmationTests(TestCase):
    """The confirmation is committed or rolled back with its order."""

    @classmethod
    def setUpTestData(cls) -> None:
        cls.customer = User.objects.create_user("ali", "ali@example.com")
        cls.pot = Product.objects.create(name="Cezve", price=Decimal("420.00"), stock=1)

    def test_an_order_queues_its_confirmation(self) -> None:
        place_order(self.customer, {self.pot: 1})
        assert_email_queued(1, to="ali@example.com", queue="emails", transport="smtp")

    def test_a_rolled_back_order_queues_no_confirmation(self) -> None:
        with self.assertRaises(OutOfStockError):
            place_order(self.customer, {self.pot: 2})
        assert_no_email_queued()

    def test_a_failing_mail_server_delays_only_the_confirmation(self) -> None:
        order = place_order(self.customer, {self.pot: 1})
        with fail_delivery(1, error=ConnectionRefusedError()):
            self.assertEqual(drain_email_queue(), [])
        with travel(minutes=6):
            [message] = drain_email_queue()
        self.assertEqual(message.subject, f"Your order #{order.pk}")
