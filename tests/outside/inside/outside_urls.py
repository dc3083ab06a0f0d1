"""The URLs of the example project, and one address that sends a mail."""

from django.core.mail import send_mail
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.urls import path

from shopsite.urls import urlpatterns as shop


@transaction.atomic
def send(request: HttpRequest) -> HttpResponse:
    """Send a mail in a transaction, as a view does."""
    send_mail("Subject", "Text", None, ["to@example.com"])
    return HttpResponse("sent")


urlpatterns = [path("send/", send), *shop]
