"""Settings of the example shop in processes whose clock is ``SHOP_CLOCK_AHEAD`` seconds ahead."""

from __future__ import annotations

import os
from datetime import timedelta

from django_epica_mail import clock
from shopsite.settings import *  # noqa: F403

clock.offset = timedelta(seconds=float(os.environ.get("SHOP_CLOCK_AHEAD", "0")))
