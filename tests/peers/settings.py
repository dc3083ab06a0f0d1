"""The suite's site, with the packages whose mail is moved."""

from tests.settings import *  # noqa: F403
from tests.settings import INSTALLED_APPS as OURS

INSTALLED_APPS = [*OURS, "post_office", "mailer", "django_yubin"]
TEMPLATES = [{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}]
EPICA_MAIL = {"TRANSPORTS": {"smtp": {}, "ses": {}}, "DEFAULT_TRANSPORT": "smtp"}
POST_OFFICE = {"BACKENDS": {"default": "x.Backend", "ses": "x.Backend", "other": "x.Backend"}}
