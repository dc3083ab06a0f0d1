"""The shop's entry in INSTALLED_APPS."""

from django.apps import AppConfig
from django.utils.translation import gettext_lazy as _


class ShopConfig(AppConfig):
    """The shop."""

    name = "shop"
    verbose_name = _("Shop")
