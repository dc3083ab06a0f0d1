"""Settings of a minimal site for the subject that ``BENCH_SITE`` describes."""

from __future__ import annotations

import json
import os

_given = json.loads(os.environ["BENCH_SITE"])

SECRET_KEY = "benchmark"  # noqa: S105 - nothing is signed
USE_TZ = True
INSTALLED_APPS = ["django.contrib.contenttypes", *_given["apps"]]
DATABASES = {"default": {**_given["database"], "CONN_MAX_AGE": 600}}
CACHES = {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}}
TEMPLATES = [{"BACKEND": "django.template.backends.django.DjangoTemplates"}]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
EMAIL_HOST, EMAIL_PORT = "127.0.0.1", _given["smtp_port"]
CELERY_BROKER_URL = _given["broker"]
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CALLS = _given["calls"]
USES_CELERY = _given["uses_celery"]
globals().update(_given["settings"])
