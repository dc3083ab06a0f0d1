"""Fill an empty shop with sample products."""

from decimal import Decimal
from typing import Any

from django.core.management.base import BaseCommand

from shop.models import Product

SAMPLES = (
    ("Siyah çay, 1 kg", "345.00", 120),
    ("Türk kahvesi, 250 g", "189.90", 40),
    ("Lokum, 500 g", "260.00", 25),
    ("Cezve", "420.50", 1),
)


class Command(BaseCommand):
    """A command that adds the sample products, unless they exist."""

    help = "Add sample products. Only one of the last is in stock: ordering two is rolled back."

    def handle(self, *args: Any, **options: Any) -> None:
        """Create each product that does not exist yet."""
        for name, price, stock in SAMPLES:
            Product.objects.get_or_create(
                name=name, defaults={"price": Decimal(price), "stock": stock}
            )
