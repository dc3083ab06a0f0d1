"""The shop's URLs."""

from django.urls import path

from shop import views

urlpatterns = [
    path("", views.home, name="home"),
    path("sign-up/", views.sign_up, name="sign_up"),
    path("orders/", views.order, name="order"),
    path("orders/<int:pk>/", views.order_detail, name="order_detail"),
    path("newsletter/", views.newsletter, name="newsletter"),
    path("newsletter/subscribe/", views.subscribe, name="subscribe"),
]
