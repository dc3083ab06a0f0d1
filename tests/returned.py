"""The messages in ``tests/data/bounces``: what came back, in the forms of many servers."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent / "data" / "bounces"


def returned(
    name: str,
    *,
    to: str = "bounces@shop.example.com",
    message_id: str = "<order-1@shop.example.com>",
    recipient: str = "gone@example.net",
) -> bytes:
    """Return a message as it comes back.

    ``to`` is the return address of the mail it is about, ``recipient`` the one it went to.
    """
    text = (FOLDER / f"{name}.eml").read_text(encoding="utf-8")
    for mark, value in (("@RETURN@", to), ("@MSGID@", message_id), ("@RCPT@", recipient)):
        text = text.replace(mark, value)
    return text.replace("\n", "\r\n").encode()
