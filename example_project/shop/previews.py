"""Sample contexts for previews of the shop's mails in the admin."""

from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from django.contrib.auth.models import User

from shop.models import OrderLine, Product


@dataclass
class SampleOrder:
    """An order that is not in the database."""

    customer: User
    total: Decimal

    def __str__(self) -> str:
        return "#1001"


def order_confirmation() -> dict[str, Any]:
    """Return a sample context for the confirmation of an order."""
    cup = Product(name="Çay", price=Decimal("149.90"))
    line = OrderLine(product=cup, quantity=2, price=cup.price)
    return {"order": SampleOrder(User(username="ayse"), line.total()), "lines": [line]}
