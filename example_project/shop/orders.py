"""Place an order: store the rows and the confirmation in one transaction."""

from collections.abc import Mapping

from django.contrib.auth.models import User
from django.db import transaction
from django.db.models import F

from shop import mails
from shop.models import Order, OrderLine, Product


class OutOfStockError(Exception):
    """Fewer of `product` are in stock than were ordered."""

    def __init__(self, product: Product) -> None:
        super().__init__(f"Not enough of {product.name!r} is in stock.")
        self.product = product


@transaction.atomic
def place_order(customer: User, wanted: Mapping[Product, int]) -> Order:
    """
    Store an order of `wanted` (product: quantity) and send its confirmation, in one transaction.

    Return the order. Raise `OutOfStockError`, which rolls back order and mail, if too few are left.
    """
    order = Order.objects.create(customer=customer)
    OrderLine.objects.bulk_create(
        OrderLine(order=order, product=product, quantity=quantity, price=product.price)
        for product, quantity in wanted.items()
    )
    mails.send_order_confirmation(order)
    # Last, because it locks rows that every buyer needs; sorted, so that buyers cannot deadlock.
    for product in sorted(wanted, key=lambda product: product.pk):
        take_from_stock(product, wanted[product])
    return order


def take_from_stock(product: Product, quantity: int) -> None:
    """Lower the stock of `product` by `quantity`, or raise `OutOfStockError`."""
    left = Product.objects.filter(pk=product.pk, stock__gte=quantity)
    if not left.update(stock=F("stock") - quantity):
        raise OutOfStockError(product)
