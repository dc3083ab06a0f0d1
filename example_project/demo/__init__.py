"""Shows the whole package at work on this machine: `python -m demo` in `example_project`."""

import sys
from pathlib import Path

# `devservers`, which starts Redis, workers and beat for the tests too, is no installed package.
sys.path.append(str(Path(__file__).resolve().parents[2]))
