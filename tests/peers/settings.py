"""The suite's site, with the packages whose mail is moved."""

from tests.settings import *  # noqa: F403
from tests.settings import INSTALLED_APPS as OURS

INSTALLED_APPS = [*OURS, "post_office", "mailer", "django_yubin", "djcelery_email"]
TEMPLATES = [{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}]
EPICA_MAIL = {"TRANSPORTS": {"smtp": {}, "ses": {}}, "DEFAULT_TRANSPORT": "smtp"}
POST_OFFICE = {"BACKENDS": {"default": "x.Backend", "ses": "x.Backend", "other": "x.Backend"}}

# How each of them sends; what arrives is noted. Two senders stand for two machines, which share no
# file that one of them could lock.
MAILER_EMAIL_BACKEND = MAILER_USE_BACKEND = CELERY_EMAIL_BACKEND = "tests.peers.wire.Backend"
MAILER_USE_FILE_LOCK = False
