"""Run the demo, which may be stopped at any moment: ``python -m demo [--once]``."""

from __future__ import annotations

import argparse
import signal
import sys

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(SystemExit):
    """A signal to stop, which every ``with`` block on the way out cleans up after."""


def end(number: int, frame: object) -> None:
    """Raise ``Stopped``, and ignore further signals."""
    for other in SIGNALS:
        signal.signal(other, signal.SIG_IGN)
    raise Stopped(128 + number)


def main() -> int:
    """Run the demo; return 0 if it was stopped or all checks passed, else 1.

    With ``--once`` the checks are what it is for: stopped before they have passed, it ends with 128
    and the signal's number, as a shell has it.
    """
    parser = argparse.ArgumentParser(prog="python -m demo", description=__doc__)
    parser.add_argument("--once", action="store_true", help="stop after the checks")
    once = parser.parse_args().once
    try:
        from demo.run import run  # takes a second, in which somebody may stop it

        return run(once=once)
    except Stopped as stopped:
        return int(str(stopped.code)) if once else 0


if __name__ == "__main__":
    for each in SIGNALS:
        signal.signal(each, end)
    sys.exit(main())
