# ruff: noqa: PT009
"""Test the site around the shop: languages, admin, sample data, database URLs."""

from django.contrib.auth.models import User
from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command
from django.test import SimpleTestCase, TestCase
from django.urls import reverse

from shop.models import Product
from shopsite.database import database_from_url


class LanguageTests(TestCase):
    """The site speaks English and Turkish."""

    def test_pages_are_in_the_browsers_language(self) -> None:
        page = self.client.get(reverse("home"), headers={"accept-language": "tr"})
        self.assertContains(page, '<html lang="tr">')
        self.assertContains(page, "Ürünler")

    def test_the_switch_in_the_footer_changes_the_language(self) -> None:
        self.assertContains(self.client.get(reverse("home")), "Products")
        form = {"language": "tr", "next": reverse("home")}
        self.assertContains(self.client.post(reverse("set_language"), form, follow=True), "Ürünler")


class AdminTests(TestCase):
    """The shop's models are in the admin."""

    def test_every_list_opens(self) -> None:
        call_command("sample_products")
        self.client.force_login(User.objects.create_superuser("staff"))
        for model in ("product", "order", "newslettersubscription"):
            page = self.client.get(reverse(f"admin:shop_{model}_changelist"))
            self.assertEqual(page.status_code, 200, model)


class SampleTests(TestCase):
    """`manage.py sample_products` fills an empty shop."""

    def test_running_it_twice_adds_nothing(self) -> None:
        call_command("sample_products")
        call_command("sample_products")
        self.assertEqual(Product.objects.count(), 4)
        self.assertContains(self.client.get(reverse("home")), "Türk kahvesi, 250 g")


class DatabaseURLTests(SimpleTestCase):
    """SHOP_DATABASE_URL becomes a DATABASES entry."""

    def test_sqlite_takes_an_absolute_path(self) -> None:
        entry = database_from_url("sqlite:///srv/my%20shop.sqlite3")
        self.assertEqual(entry["NAME"], "/srv/my shop.sqlite3")
        self.assertEqual(entry["OPTIONS"]["transaction_mode"], "IMMEDIATE")

    def test_postgres_takes_host_and_credentials(self) -> None:
        entry = database_from_url("postgres://shop:p%40ss@db.example.com:5433/shop?sslmode=require")
        self.assertEqual(entry["NAME"], "shop")
        self.assertEqual((entry["USER"], entry["PASSWORD"]), ("shop", "p@ss"))
        self.assertEqual((entry["HOST"], entry["PORT"]), ("db.example.com", 5433))
        self.assertEqual(entry["OPTIONS"], {"sslmode": "require"})

    def test_postgres_takes_a_socket_folder(self) -> None:
        entry = database_from_url("postgresql://postgres:@/shop?host=/run/pg")
        self.assertEqual((entry["HOST"], entry["PORT"]), ("/run/pg", ""))

    def test_mysql_takes_host_and_credentials(self) -> None:
        entry = database_from_url("mysql://shop:p%40ss@db.example.com:3307/shop")
        self.assertEqual(entry["ENGINE"], "django.db.backends.mysql")
        self.assertEqual((entry["NAME"], entry["HOST"]), ("shop", "db.example.com"))
        self.assertEqual((entry["USER"], entry["PASSWORD"]), ("shop", "p@ss"))
        self.assertEqual(entry["PORT"], "3307")

    def test_another_scheme_is_rejected(self) -> None:
        with self.assertRaisesMessage(ImproperlyConfigured, "'oracle'"):
            database_from_url("oracle://localhost/shop")
