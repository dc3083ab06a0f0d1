"""Settings of the test suite, with the packages whose mail is imported."""

from tests.settings import *  # noqa: F403
from tests.settings import INSTALLED_APPS as OURS

INSTALLED_APPS = [*OURS, "post_office", "mailer", "django_yubin", "djcelery_email"]
TEMPLATES = [{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}]
EPICA_MAIL = {"TRANSPORTS": {"smtp": {}, "ses": {}}, "DEFAULT_TRANSPORT": "smtp"}
POST_OFFICE = {"BACKENDS": {"default": "x.Backend", "ses": "x.Backend", "other": "x.Backend"}}

# All packages send with a backend that records mail. Two senders represent two hosts, which share
# no file that one of them could lock.
MAILER_EMAIL_BACKEND = MAILER_USE_BACKEND = CELERY_EMAIL_BACKEND = "tests.peers.wire.Backend"
MAILER_USE_FILE_LOCK = False
