"""Measure what a DKIM signature costs: ``python -m benchmarks.signing``."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa

from django_epica_mail.transports import dkim

HEADERS = (
    "From: Shop <shop@example.com>\r\nTo: to@example.org\r\nSubject: Your order\r\n"
    "Date: Mon, 02 Jan 2023 04:05:06 +0000\r\nMessage-ID: <1@example.com>\r\n"
    'MIME-Version: 1.0\r\nContent-Type: text/plain; charset="utf-8"\r\n'
    "Content-Transfer-Encoding: 7bit\r\n\r\n"
)
LINE = "This is a line of a mail, as long as lines of mails are on average.\r\n"
SIZES = {"2 kB": 30, "30 kB": 450, "1 MB": 15_000}
ROUNDS, SECONDS = 5, 0.4


def main() -> None:
    keys = {
        "rsa 2048": rsa.generate_private_key(65537, 2048),
        "ed25519": ed25519.Ed25519PrivateKey.generate(),
    }
    with tempfile.TemporaryDirectory() as folder:
        forms = {name: _form(Path(folder) / name, key) for name, key in keys.items()}
        forms["both"] = [*forms["rsa 2048"], *forms["ed25519"]]
        for name, form in forms.items():
            signer = dkim.Signer(dkim.load(form))
            for size, lines in SIZES.items():
                content = (HEADERS + LINE * lines).encode()
                print(f"{name:9} {size:>6} {_microseconds(signer, content):10,.0f} µs per mail")


def _form(file: Path, key: Any) -> list[dict[str, str]]:
    file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return [{"selector": "s", "domain": "example.com", "key_file": str(file)}]


def _microseconds(signer: dkim.Signer, content: bytes) -> float:
    """Return the least average of several rounds."""
    best = float("inf")
    for _ in range(ROUNDS):
        count, began = 0, time.perf_counter()
        while time.perf_counter() - began < SECONDS:
            signer.sign(content)
            count += 1
        best = min(best, (time.perf_counter() - began) / count)
    return best * 1e6


if __name__ == "__main__":
    main()
