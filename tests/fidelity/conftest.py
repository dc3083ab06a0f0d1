"""Share fixtures with the integration tests."""

from tests.integration.conftest import (  # noqa: F401
    deliver,
    epica_mail,
    queue_mail,
    rings,
    smtp,
    smtp_server,
    travel,
)
