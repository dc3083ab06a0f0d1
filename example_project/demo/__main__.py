"""Run the demo: start everything, send, watch it arrive, say what that proved."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import partial

from rich.console import Console

from demo.display import Count, Display
from demo.stack import PASSWORD, USER, Stack, running
from demo.wiretap import Wiretap

DEADLINE = 60.0
"""Seconds until everything has to have arrived."""


def main() -> int:
    """Run the demo; return 0 if everything it promised held, else 1."""
    parser = argparse.ArgumentParser(prog="python -m demo", description=__doc__)
    parser.add_argument("--once", action="store_true", help="end after the checks")
    once = parser.parse_args().once
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, end)
    sys.stdout.reconfigure(errors="replace")
    console = Console(soft_wrap=True, highlight=False)
    try:
        with running(lambda part: console.print(f"[dim]Starting {part} …[/]")) as stack:
            held = show(console, stack)
            tell(console, stack)
            if once:
                console.print("\nEverything is being stopped: without --once it stays up.")
            else:
                stay(console)
    except (RuntimeError, TimeoutError, OSError) as error:
        console.print(f"The demo could not go on: {error}", style="red", markup=False)
        return 1
    return 0 if held else 1


def end(number: int, frame: object) -> None:
    """Leave by an exception, so that every `with` cleans up; hear no second signal meanwhile."""
    for other in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(other, signal.SIG_IGN)
    raise SystemExit(128 + number)


def show(console: Console, stack: Stack) -> bool:
    """Send, watch, check; return whether everything held."""
    from demo import scenario  # needs Django set up

    counts: list[Count] = [
        ("in the inbox", partial(scenario.count_arrived, stack.inbox)),
        ("sent in the database", scenario.count_sent),
    ]
    with Wiretap(stack.redis.url()) as wiretap:
        began = time.monotonic()
        with Display(console, counts, len(scenario.EXPECTED)) as display:
            send(display, scenario.steps(stack.site.url))
            watch(display, stack)
        seconds = time.monotonic() - began
        proofs = scenario.proofs(stack.inbox, wiretap)

    console.print(f"\n[bold]What arrived, within {seconds:.1f} s:[/]")
    for line in scenario.summary(stack.inbox):
        console.print(f"  {line}", markup=False)
    console.print("\n[bold]What that proved:[/]")
    for proof in proofs:
        console.print("  [green]✓[/]" if proof.holds else "  [red]✗[/]", end=" ")
        console.print(proof.claim, markup=False)
    held = all(proof.holds for proof in proofs)
    if not held:
        console.print(f"\nNot everything held.\n{stack.worker.log_tail()}", markup=False)
    return held


def send(display: Display, steps: list[tuple[str, Callable[[], None]]]) -> None:
    """Take each step, and say how long the caller had to wait for it."""
    display.console.print("\n[bold]Sending, with Django's own calls:[/]")
    for name, act in steps:
        began = time.monotonic()
        act()
        milliseconds = (time.monotonic() - began) * 1000
        display.console.print(f"  {name} [dim]took the caller {milliseconds:.0f} ms[/]")
        display.update()


def watch(display: Display, stack: Stack) -> None:
    """Wait until everything has arrived, or the deadline has passed."""
    deadline = time.monotonic() + DEADLINE
    while not display.update() and time.monotonic() < deadline:
        stack.check()
        time.sleep(0.1)


def tell(console: Console, stack: Stack) -> None:
    """Say where to look."""
    console.print(
        f"\n  Site   {stack.site.url}"
        f"\n  Admin  {stack.site.url}admin/  (user {USER}, password {PASSWORD})"
        f"\n  Inbox  {stack.inbox.url}"
    )
    console.print(f"  Queue  {stack.site.url}admin/epica_mail/emailtotal/")
    if stack.flower is not None:
        console.print(f"  Flower {stack.flower.url}  (user {USER}, password {PASSWORD})")


def stay(console: Console) -> None:
    """Stay up until Ctrl-C or another signal to end."""
    console.print("\nLook around: what the site sends arrives in the inbox. Ctrl-C ends the demo.")
    with contextlib.suppress(SystemExit):
        threading.Event().wait()
    console.print("Stopping everything …", style="dim")


if __name__ == "__main__":
    sys.exit(main())
