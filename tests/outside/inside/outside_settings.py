"""The settings of another project's tests, with its own mail backend or the queue.

``OUTSIDE_SETTINGS`` names the project's settings module; ``OUTSIDE_QUEUE`` is 1 for the queue.
"""

import os
from importlib import import_module

_own = import_module(os.environ["OUTSIDE_SETTINGS"])
globals().update({name: getattr(_own, name) for name in dir(_own) if name.isupper()})

# They hash a password in most tests, which would take most of the time.
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]

if os.environ["OUTSIDE_QUEUE"] == "1":
    _QUEUE = "django_epica_mail.backends.EmailBackend"
    INSTALLED_APPS = [*_own.INSTALLED_APPS, "django_epica_mail"]
    if hasattr(_own, "MAILERS"):
        MAILERS = {
            "default": {"BACKEND": _QUEUE, "OPTIONS": {"transport": "smtp"}},
            "smtp": {"BACKEND": "django.core.mail.backends.smtp.EmailBackend"},
        }
    else:
        EMAIL_BACKEND = _QUEUE
