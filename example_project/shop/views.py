"""The shop's pages. Password reset and log-in are Django's own views."""

from typing import Any

from django import forms
from django.contrib import messages
from django.contrib.admin.views.decorators import staff_member_required
from django.contrib.auth import login
from django.contrib.auth.decorators import login_required
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils.translation import get_language, ngettext
from django.utils.translation import gettext as _
from django.views.decorators.http import require_POST, require_safe

from shop import mails
from shop.forms import NewsletterForm, OrderForm, SignUpForm, SubscribeForm
from shop.models import NewsletterSubscription, Product
from shop.orders import OutOfStockError, place_order


@require_safe
def home(request: HttpRequest) -> HttpResponse:
    """Show the products, the order form and the newsletter form."""
    return render_home(request)


def render_home(request: HttpRequest, **forms_with_errors: forms.BaseForm) -> HttpResponse:
    """Render the home page with the given bound forms instead of empty ones."""
    context: dict[str, Any] = {
        "order_form": OrderForm(Product.objects.all()),
        "subscribe_form": SubscribeForm(),
        **forms_with_errors,
    }
    return render(request, "shop/home.html", context)


def sign_up(request: HttpRequest) -> HttpResponse:
    """Create a customer, send a welcome mail and log the customer in."""
    form = SignUpForm(request.POST or None)
    if form.is_valid():
        with transaction.atomic():
            user = form.save()
            mails.send_welcome(user)
        login(request, user)
        messages.success(request, _("Welcome! We have sent you a mail."))
        return redirect("home")
    return render(request, "shop/sign_up.html", {"form": form})


@require_POST
@login_required
def order(request: HttpRequest) -> HttpResponse:
    """Place an order."""
    form = OrderForm(Product.objects.all(), request.POST)
    if not form.is_valid():
        return render_home(request, order_form=form)
    try:
        placed = place_order(request.user, form.wanted())
    except OutOfStockError as error:
        form.add_error(None, _("Too few are left of “%(product)s”.") % {"product": error.product})
        return render_home(request, order_form=form)
    messages.success(request, _("Thank you! The confirmation is on its way to you."))
    return redirect("order_detail", placed.pk)


@require_safe
@login_required
def order_detail(request: HttpRequest, pk: int) -> HttpResponse:
    """Show a customer one of their own orders."""
    placed = get_object_or_404(request.user.orders, pk=pk)
    lines = placed.lines.select_related("product")
    return render(request, "shop/order_detail.html", {"order": placed, "lines": lines})


@require_POST
def subscribe(request: HttpRequest) -> HttpResponse:
    """Subscribe an address to the newsletter in the visitor's language."""
    form = SubscribeForm(
        request.POST, instance=NewsletterSubscription(language=get_language() or "en")
    )
    if not form.is_valid():
        return render_home(request, subscribe_form=form)
    form.save()
    messages.success(request, _("You will get our newsletter."))
    return redirect("home")


@staff_member_required
def newsletter(request: HttpRequest) -> HttpResponse:
    """Send a newsletter to all subscribers."""
    form = NewsletterForm(request.POST or None)
    if form.is_valid():
        count = mails.send_newsletter(form.cleaned_data["subject"], form.cleaned_data["text"])
        messages.success(
            request,
            ngettext("%(count)s mail is on its way.", "%(count)s mails are on their way.", count)
            % {"count": count},
        )
        return redirect("newsletter")
    return render(request, "shop/newsletter.html", {"form": form})
