"""The shop's forms."""

from collections.abc import Iterable, Iterator
from typing import Any

from django import forms
from django.contrib.auth.forms import UserCreationForm
from django.contrib.auth.models import User
from django.core.validators import RegexValidator
from django.forms.boundfield import BoundField
from django.utils.translation import gettext_lazy as _

from shop.models import NewsletterSubscription, Product


class SignUpForm(UserCreationForm):
    """A new customer: user name, e-mail address, password."""

    email = forms.EmailField(label=_("E-mail address"), max_length=254)

    class Meta:
        model = User
        fields = ("username", "email")


class OrderForm(forms.Form):
    """A quantity for each product."""

    def __init__(self, products: Iterable[Product], *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.products = list(products)
        for product in self.products:
            self.fields[field_name(product)] = forms.IntegerField(
                label=product.name, min_value=0, max_value=1000, required=False
            )

    def rows(self) -> Iterator[tuple[Product, BoundField]]:
        """Pair each product with its field."""
        return ((product, self[field_name(product)]) for product in self.products)

    def clean(self) -> dict[str, Any]:
        """Reject an empty order."""
        cleaned = super().clean() or self.cleaned_data
        if not self.errors and not any(cleaned.values()):
            raise forms.ValidationError(_("Choose at least one product."))
        return cleaned

    def wanted(self) -> dict[Product, int]:
        """Return the chosen quantities by product."""
        quantities = (
            (product, self.cleaned_data[field_name(product)]) for product in self.products
        )
        return {product: quantity for product, quantity in quantities if quantity}


class SubscribeForm(forms.ModelForm):
    """An address for the newsletter."""

    class Meta:
        model = NewsletterSubscription
        fields = ("email",)


class NewsletterForm(forms.Form):
    """A newsletter to all subscribers."""

    # A browser's one-line field cannot contain a line break, but a forged request can.
    subject = forms.CharField(
        label=_("Subject"), max_length=150, validators=[RegexValidator(r"\A[^\r\n]*\Z")]
    )
    text = forms.CharField(label=_("Text"), widget=forms.Textarea)


def field_name(product: Product) -> str:
    """Return the name of the field for the quantity of `product`."""
    return f"quantity-{product.pk}"
