"""Production settings of the shop: the site's own, overridden by environment variables."""

import os

import django

from shopsite.settings import *  # noqa: F403
from shopsite.settings import ALLOWED_HOSTS, BASE_DIR, DEFAULT_FROM_EMAIL, EPICA_MAIL, MIDDLEWARE

SECRET_KEY = os.environ["SHOP_SECRET_KEY"]
DEBUG = False
ALLOWED_HOSTS = [*ALLOWED_HOSTS, *os.environ.get("SHOP_HOSTS", "").split()]

# The proxy in front of the site sets this header; it must not forward one sent by a client.
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
CSRF_TRUSTED_ORIGINS = [f"https://{host}" for host in os.environ.get("SHOP_HOSTS", "").split()]
SESSION_COOKIE_SECURE = True
CSRF_COOKIE_SECURE = True

# WhiteNoise serves the admin's style sheets; its documentation asks for the second place.
STATIC_ROOT = BASE_DIR / "static"
MIDDLEWARE = [MIDDLEWARE[0], "whitenoise.middleware.WhiteNoiseMiddleware", *MIDDLEWARE[1:]]

DEFAULT_FROM_EMAIL = os.environ.get("SHOP_FROM_EMAIL") or DEFAULT_FROM_EMAIL
# The token that Prometheus sends to mail/metrics/; mail/health/ requires it for details.
EPICA_MAIL = {**EPICA_MAIL, "MONITORING_TOKEN": os.environ.get("SHOP_MONITORING_TOKEN") or None}
CELERY_WORKER_PREFETCH_MULTIPLIER = 1  # so that no notification waits in a busy process
SMTP_USER = os.environ.get("SHOP_SMTP_USER", "")
SMTP_PASSWORD = os.environ.get("SHOP_SMTP_PASSWORD", "")
SMTP_TLS = os.environ.get("SHOP_SMTP_TLS", "1") == "1"  # STARTTLS, usually on port 587

if django.VERSION >= (6, 1):
    from shopsite.settings import SMTP  # shared by the aliases "smtp" and "direct"

    SMTP["OPTIONS"].update(username=SMTP_USER, password=SMTP_PASSWORD, use_tls=SMTP_TLS)
else:
    EMAIL_HOST_USER, EMAIL_HOST_PASSWORD, EMAIL_USE_TLS = SMTP_USER, SMTP_PASSWORD, SMTP_TLS
