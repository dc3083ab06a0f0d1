"""Demonstrate the whole package on this computer: `python -m demo` in `example_project`."""

import sys
from pathlib import Path

# `devservers`, which also starts servers for the tests, is not an installed package.
sys.path.append(str(Path(__file__).resolve().parents[2]))
