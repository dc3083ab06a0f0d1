"""The shop in Django's admin."""

from django.contrib import admin

from shop.models import NewsletterSubscription, Order, OrderLine, Product


@admin.register(Product)
class ProductAdmin(admin.ModelAdmin):
    """Products, with their stock editable in the list."""

    list_display = ("name", "price", "stock")
    list_editable = ("stock",)
    search_fields = ("name",)


class OrderLineInline(admin.TabularInline):
    """The lines of an order."""

    model = OrderLine
    extra = 0


@admin.register(Order)
class OrderAdmin(admin.ModelAdmin):
    """Orders with their lines."""

    list_display = ("id", "customer", "created")
    list_filter = ("created",)
    list_select_related = ("customer",)
    raw_id_fields = ("customer",)
    inlines = (OrderLineInline,)


@admin.register(NewsletterSubscription)
class NewsletterSubscriptionAdmin(admin.ModelAdmin):
    """Newsletter subscriptions."""

    list_display = ("email", "language", "created")
    list_filter = ("language",)
    search_fields = ("email",)
