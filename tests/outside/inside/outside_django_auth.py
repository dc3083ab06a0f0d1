"""Settings for Django's own tests of ``django.contrib.auth``, as its test runner makes them."""

SECRET_KEY = "outside"
USE_TZ = False
