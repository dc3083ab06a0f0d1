"""Settings of the example shop; environment variables override the ones that tests vary."""

import json
import os
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import django
from celery.schedules import crontab
from django.utils.translation import gettext_lazy as _

from django_epica_mail.schedule import SCHEDULE
from shopsite.database import database_from_url

BASE_DIR = Path(__file__).resolve().parent.parent

# For the demo only: a real site keeps its key outside the repository.
SECRET_KEY = "demo-key-not-a-secret-never-use-on-a-real-site"  # noqa: S105
DEBUG = os.environ.get("SHOP_DEBUG", "1") == "1"
ALLOWED_HOSTS = ["localhost", "127.0.0.1", "[::1]"]

# `shop` is before Django's apps so that its registration/ templates override the admin's.
INSTALLED_APPS = [
    "shop",
    "django_epica_mail",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
]
# The package's extras, if installed.
INSTALLED_APPS += [
    name for name in ("django_celery_results", "django_celery_beat") if find_spec(name)
]
INSTALLED_APPS += os.environ.get("SHOP_MORE_APPS", "").split()

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.locale.LocaleMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]

ROOT_URLCONF = "shopsite.urls"
WSGI_APPLICATION = "shopsite.wsgi.application"
ASGI_APPLICATION = "shopsite.asgi.application"

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.i18n",
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]

DATABASES = {
    "default": database_from_url(
        os.environ.get("SHOP_DATABASE_URL", f"sqlite://{BASE_DIR / 'shop.sqlite3'}")
    )
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator"},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
    {"NAME": "django.contrib.auth.password_validation.NumericPasswordValidator"},
]
LOGIN_URL = "login"
LOGIN_REDIRECT_URL = "home"
LOGOUT_REDIRECT_URL = "home"

LANGUAGE_CODE = "en"
LANGUAGES = [("en", _("English")), ("tr", _("Turkish"))]
TIME_ZONE = "Europe/Istanbul"
USE_TZ = True
STATIC_URL = "static/"

# --- E-mail -------------------------------------------------------------------------------------

DEFAULT_FROM_EMAIL = "Epica Shop <shop@example.com>"
SMTP_HOST = os.environ.get("SHOP_SMTP_HOST", "127.0.0.1")
SMTP_PORT = int(os.environ.get("SHOP_SMTP_PORT", "1025"))
# More OPTIONS of the queue's transport, such as "oauth" and "dkim".
SMTP_OPTIONS: dict[str, Any] = json.loads(os.environ.get("SHOP_SMTP_OPTIONS", "{}"))

if django.VERSION >= (6, 1):
    SMTP: dict[str, Any] = {
        "BACKEND": "django.core.mail.backends.smtp.EmailBackend",
        "OPTIONS": {"host": SMTP_HOST, "port": SMTP_PORT, "timeout": 10},
    }
    QUEUED = "django_epica_mail.backends.EmailBackend"
    MAILERS: dict[str, dict[str, Any]] = {
        "default": {"BACKEND": QUEUED, "OPTIONS": {"transport": "smtp"}},
        "bulk": {
            "BACKEND": QUEUED,
            "OPTIONS": {"transport": "smtp", "queue": "bulk_emails", "priority": 5},
        },
        "smtp": {**SMTP, "OPTIONS": {**SMTP["OPTIONS"], **SMTP_OPTIONS}},
        "direct": SMTP,
    }
    DIRECT_MAIL = {"using": "direct"}
else:
    EMAIL_BACKEND = "django_epica_mail.backends.EmailBackend"  # the only line that was changed
    EMAIL_HOST = SMTP_HOST
    EMAIL_PORT = SMTP_PORT
    EMAIL_TIMEOUT = 10
    DIRECT_MAIL = {"email_backend": "django.core.mail.backends.smtp.EmailBackend"}

EPICA_MAIL: dict[str, Any] = {
    # Templates that staff can preview in the admin, with sample contexts.
    "PREVIEWS": {
        "shop/mail/order_confirmation": "shop.previews.order_confirmation",
        "emails/welcome": {
            "user": {"get_short_name": "Ayşe"},
            "action_url": "https://shop.example.com/",
        },
        "emails/notification": {"title": "Epica Shop", "body": "…"},
    },
    **json.loads(os.environ.get("SHOP_EPICA_MAIL", "{}")),
}
if SMTP_OPTIONS and django.VERSION < (6, 1):
    EPICA_MAIL["TRANSPORTS"] = {
        "smtp": {
            "BACKEND": "django.core.mail.backends.smtp.EmailBackend",
            "OPTIONS": SMTP_OPTIONS,  # on top of the EMAIL_* settings
        }
    }

LOG_LEVEL = os.environ.get("SHOP_LOG_LEVEL", "INFO")
# Error reports are sent directly, because the error may be in the queue itself.
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {
        "console": {"class": "logging.StreamHandler"},
        "mail_admins": {
            "class": "django.utils.log.AdminEmailHandler",
            "level": "ERROR",
            **DIRECT_MAIL,
        },
    },
    "loggers": {
        "django": {"handlers": ["console", "mail_admins"], "level": LOG_LEVEL},
        "django_epica_mail": {"handlers": ["console", "mail_admins"], "level": LOG_LEVEL},
    },
}

# --- Celery -------------------------------------------------------------------------------------

CELERY_BROKER_URL = os.environ.get("SHOP_BROKER_URL", "redis://127.0.0.1:6379/0")
CELERY_BROKER_TRANSPORT_OPTIONS = json.loads(os.environ.get("SHOP_BROKER_OPTIONS", "{}"))
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_TIMEZONE = TIME_ZONE
CELERY_RESULT_BACKEND = os.environ.get("SHOP_RESULT_BACKEND")
CELERY_RESULT_EXPIRES = timedelta(days=30)
CELERY_RESULT_EXTENDED = True
CELERY_TASK_TRACK_STARTED = True

# Plain beat reads its schedule here. With django-celery-beat, `celery -A shopsite beat -S django`
# reads it from the database, where `migrate` creates the same entries. Then set SHOP_BEAT to
# "database", because this dictionary would overwrite times edited in the admin.
SWEEP_SECONDS = float(os.environ.get("SHOP_SWEEP_SECONDS", "5"))
CELERY_BEAT_SCHEDULE: dict[str, Any] = {
    **SCHEDULE,
    "dispatch-due-emails": {**SCHEDULE["dispatch-due-emails"], "schedule": SWEEP_SECONDS},
    # The site's own periodic task.
    "daily-report": {"task": "shop.tasks.send_daily_report", "schedule": crontab(hour=8, minute=0)},
}
if os.environ.get("SHOP_REPORT", "1") == "0":
    del CELERY_BEAT_SCHEDULE["daily-report"]
if os.environ.get("SHOP_BEAT") == "database":
    CELERY_BEAT_SCHEDULE = {}
else:
    # django-celery-beat may be installed, but beat does not run from its tables.
    SILENCED_SYSTEM_CHECKS = ["epica_mail.W081"]
