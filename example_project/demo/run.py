"""Start everything, send mail, wait until it arrives, and check the results."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable
from functools import partial

from rich.console import Console

from demo.display import Count, Display
from demo.redis_monitor import RedisMonitor
from demo.stack import PASSWORD, USER, Stack, running

DEADLINE = 60.0
"""Seconds within which all mail must arrive."""


def run(*, once: bool) -> int:
    """Run the demo; return 0 if all checks passed, else 1. ``once`` ends it after the checks."""
    sys.stdout.reconfigure(errors="replace")
    console = Console(soft_wrap=True, highlight=False)
    try:
        with running(lambda part: console.print(f"[dim]Starting {part} …[/]")) as stack:
            passed = send_and_check(console, stack)
            print_addresses(console, stack)
            if once:
                console.print("\nStopping everything; without --once it would keep running.")
            else:
                wait_for_signal(console)
    except (RuntimeError, TimeoutError, OSError) as error:
        console.print(f"The demo failed: {error}", style="red", markup=False)
        return 1
    return 0 if passed else 1


def send_and_check(console: Console, stack: Stack) -> bool:
    """Send the mails, wait until they arrive, and return whether all checks passed."""
    from demo import scenario  # needs django.setup()

    counts: list[Count] = [
        ("in the inbox", partial(scenario.count_arrived, stack.inbox)),
        ("sent in the database", scenario.count_sent),
    ]
    with RedisMonitor(stack.redis.url()) as monitor:
        began = time.monotonic()
        with Display(console, counts, len(scenario.EXPECTED)) as display:
            send(display, scenario.steps(stack.site.url("/")))
            watch(display, stack)
        seconds = time.monotonic() - began
        checks = scenario.checks(stack.inbox, monitor, stack.site.url("/"))

    console.print(f"\n[bold]What arrived, within {seconds:.1f} s:[/]")
    for line in scenario.summary(stack.inbox):
        console.print(f"  {line}", markup=False)
    console.print("\n[bold]Checks:[/]")
    for check in checks:
        console.print("  [green]✓[/]" if check.passed else "  [red]✗[/]", end=" ")
        console.print(check.claim, markup=False)
    passed = all(check.passed for check in checks)
    if not passed:
        console.print(f"\nNot all checks passed.\n{stack.worker.log_tail()}", markup=False)
    return passed


def send(display: Display, steps: list[tuple[str, Callable[[], None]]]) -> None:
    """Run each step, and print how long the caller waited for it."""
    display.console.print("\n[bold]Sending, with Django's own calls:[/]")
    for name, act in steps:
        began = time.monotonic()
        act()
        milliseconds = (time.monotonic() - began) * 1000
        display.console.print(f"  {name} [dim]took the caller {milliseconds:.0f} ms[/]")
        display.update()


def watch(display: Display, stack: Stack) -> None:
    """Wait until all mail has arrived or the deadline has passed."""
    deadline = time.monotonic() + DEADLINE
    while not display.update() and time.monotonic() < deadline:
        stack.check()
        time.sleep(0.1)


def print_addresses(console: Console, stack: Stack) -> None:
    """Print where to look."""
    from demo import scenario  # needs django.setup()

    console.print(
        f"\n  Site   {stack.site.url('/')}"
        f"\n  Admin  {stack.site.url('/admin/')}  (user {USER}, password {PASSWORD})"
        f"\n  Inbox  {stack.inbox.url}"
    )
    console.print(
        f"\n  Dashboard      {stack.site.url('/admin/epica_mail/emailtotal/')}"
        f"\n  Slowed domain  {stack.site.url('/')}{scenario.SLOWED_PAGE}"
        f"\n  Bounce         {stack.site.url('/')}{scenario.BOUNCED_PAGE}\n"
    )
    if stack.flower is not None:
        console.print(f"  Flower {stack.flower.url('/')}  (user {USER}, password {PASSWORD})")


def wait_for_signal(console: Console) -> None:
    """Keep running until Ctrl-C or another signal to stop."""
    console.print("\nLook around: mail from the site arrives in the inbox. Press Ctrl-C to stop.")
    with contextlib.suppress(SystemExit):
        threading.Event().wait()
    console.print("Stopping everything …", style="dim")
