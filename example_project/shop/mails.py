"""The mails the shop sends, with plain Django calls that do not mention a queue."""

from collections.abc import Iterator

import django
from django.contrib.auth.models import User
from django.core import mail
from django.core.mail import EmailMessage, EmailMultiAlternatives, send_mail
from django.core.mail.backends.base import BaseEmailBackend
from django.template.loader import render_to_string
from django.utils.translation import gettext as _
from django.utils.translation import override

from shop.models import NewsletterSubscription, Order


def send_welcome(user: User) -> None:
    """Greet a new customer."""
    send_mail(
        _("Welcome to Epica Shop, %(name)s") % {"name": user.username},
        render_to_string("shop/mail/welcome.txt", {"user": user}),
        None,
        [user.email],
    )


def send_order_confirmation(order: Order) -> None:
    """Confirm an order to its customer, in text and HTML."""
    context = {"order": order, "lines": order.lines.select_related("product")}
    message = EmailMultiAlternatives(
        _("Your order %(order)s") % {"order": order},
        render_to_string("shop/mail/order_confirmation.txt", context),
        to=[order.customer.email],
    )
    message.attach_alternative(
        render_to_string("shop/mail/order_confirmation.html", context), "text/html"
    )
    message.send()


def send_newsletter(subject: str, text: str) -> int:
    """Send one mail to each subscriber; return how many."""
    return bulk_mailer().send_messages(list(newsletter(subject, text)))


def newsletter(subject: str, text: str) -> Iterator[EmailMessage]:
    """Yield each subscriber's newsletter, with the footer in their language."""
    for subscription in NewsletterSubscription.objects.all():
        with override(subscription.language):
            body = render_to_string(
                "shop/mail/newsletter.txt", {"text": text, "subscription": subscription}
            )
        yield EmailMessage(subject, body, to=[subscription.email])


def bulk_mailer() -> BaseEmailBackend:
    """Return the connection for bulk mail; before Django 6.1 it names the queue itself."""
    if django.VERSION >= (6, 1):
        return mail.mailers["bulk"]
    return mail.get_connection(queue="bulk_emails", priority=5)
