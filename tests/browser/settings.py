"""The example project with a language that is written from right to left, and a theme if wanted.

``BROWSER_THEME`` names an app that replaces the look of Django's admin: ``unfold`` or ``jazzmin``.
"""

import os

from shopsite.settings import *  # noqa: F403
from shopsite.settings import INSTALLED_APPS, LANGUAGES

INSTALLED_APPS = [*os.environ.get("BROWSER_THEME", "").split(), *INSTALLED_APPS]
# Hebrew is Django's; what the package says stays English.
LANGUAGES = [*LANGUAGES, ("he", "Hebrew")]

# Jazzmin follows the reader's preference, as Django and Unfold do, and asks nobody else for fonts.
JAZZMIN_SETTINGS = {"use_google_fonts_cdn": False}
JAZZMIN_UI_TWEAKS = {"default_theme_mode": "auto"}
