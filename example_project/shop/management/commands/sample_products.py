"""Fills an empty shop."""

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
    """Add the sample products; run again, it changes nothing."""

    help = "Add a few sample products; of the last there is only one, so ordering two is undone."

    def handle(self, *args: Any, **options: Any) -> None:
        """Create each product that is not there yet."""
        for name, price, stock in SAMPLES:
            Product.objects.get_or_create(
                name=name, defaults={"price": Decimal(price), "stock": stock}
            )
