"""Settings of the example shop that send its mail to Amazon SES, with anymail's webhooks."""

from __future__ import annotations

import os
from typing import Any

import django

from shopsite.settings import *  # noqa: F403
from shopsite.settings import EPICA_MAIL, INSTALLED_APPS

AMAZON: dict[str, Any] = {
    "BACKEND": "anymail.backends.amazon_ses.EmailBackend",
    "OPTIONS": {
        "client_params": {
            "endpoint_url": os.environ["SHOP_AMAZON_URL"],
            "region_name": "eu-west-1",
            "aws_access_key_id": "id",
            "aws_secret_access_key": "secret",
        }
    },
}
if django.VERSION >= (6, 1):
    from shopsite.settings import MAILERS

    MAILERS = {**MAILERS, "amazon": AMAZON}
else:
    EPICA_MAIL["TRANSPORTS"] = {"amazon": AMAZON}
EPICA_MAIL |= {
    "DEFAULT_TRANSPORT": "amazon",
    "BASE_URL": "https://shop.example.com",
    "TRANSACTIONAL": ["order"],
    "SEND_TIMEOUT": 2,
    "ROUTES": [
        {"match": {"category": "news"}, "transport": "amazon", "unsubscribe": True},
        {"transport": "amazon", "on_unknown": "hold"},
    ],
}
INSTALLED_APPS = [*INSTALLED_APPS, "anymail"]
ANYMAIL = {"WEBHOOK_SECRET": "user:secret"}
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "tests.acceptance.provider_urls"
