"""Settings of the test suite: a small site for every supported version of Django."""

from __future__ import annotations

import os
from typing import Any

import django

from shopsite.database import database_from_url, sqlite

SECRET_KEY = "tests"
USE_TZ = True
TIME_ZONE = "Europe/Istanbul"
LANGUAGE_CODE = "en"
DEFAULT_FROM_EMAIL = "shop@example.com"
INSTALLED_APPS = [
    "django.contrib.contenttypes",
    "django.contrib.auth",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.admin",
    "django_epica_mail",
]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]
SESSION_ENGINE = "django.contrib.sessions.backends.signed_cookies"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
STATIC_URL = "static/"
_URL = os.environ.get("EPICA_TEST_DATABASE_URL")
DATABASES: dict[str, Any] = {"default": database_from_url(_URL) if _URL else sqlite(":memory:")}

if django.VERSION >= (6, 1):
    MAILERS = {
        "default": {
            "BACKEND": "django_epica_mail.backends.EmailBackend",
            "OPTIONS": {"transport": "smtp"},
        },
        "smtp": {
            "BACKEND": "django.core.mail.backends.smtp.EmailBackend",
            "OPTIONS": {"host": "127.0.0.1", "port": 1},
        },
    }
else:
    EMAIL_BACKEND = "django_epica_mail.backends.EmailBackend"
    EMAIL_HOST, EMAIL_PORT = "127.0.0.1", 1

EPICA_MAIL: dict[str, Any] = {"MESSAGE_MODULES": ["tests"]}
