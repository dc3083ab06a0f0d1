"""A site of its own process, which says what its first mail imports; run by ``test_first_send``."""

from __future__ import annotations

import json
import sys
import time
from importlib import import_module

import django
from celery import Celery
from django.conf import settings

broker, *imported_before = sys.argv[1:]

QUEUE = "django_epica_mail.backends.EmailBackend"
settings.configure(
    SECRET_KEY="tests",
    USE_TZ=True,
    INSTALLED_APPS=["django.contrib.contenttypes", "django_epica_mail"],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    **(
        {"MAILERS": {"default": {"BACKEND": QUEUE, "OPTIONS": {"transport": "smtp"}}, "smtp": {}}}
        if django.VERSION >= (6, 1)
        else {"EMAIL_BACKEND": QUEUE}
    ),
)
for name in imported_before:
    import_module(name)
app = Celery("site", broker=broker)
app.conf.task_routes = {"shop.tasks.*": {"queue": "shop"}}
app.set_default()
django.setup()
has_transport = "kombu.transport.redis" in sys.modules

from django.core.mail import send_mail  # noqa: E402
from django.core.management import call_command  # noqa: E402

call_command("migrate", verbosity=0)
known, costs, imported = set(sys.modules), [], []
for _ in range(2):
    started = time.process_time()
    send_mail("S", "B", None, ["to@example.com"])
    costs.append(1000 * (time.process_time() - started))
    imported.append(sorted(set(sys.modules) - known))
    known = set(sys.modules)
report = {"imported": imported, "ms": costs, "is_finalized": app.finalized}
print(json.dumps({"has_transport": has_transport, **report}))
