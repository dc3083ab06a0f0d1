"""Signals a site may listen to.

A receiver that raises is logged and stops nothing, but for those of ``before_send``.
"""

from __future__ import annotations

from django.dispatch import Signal

email_moved = Signal()
"""An e-mail changed its status, and the change is committed.

Arguments: ``sender`` (``EmailLog``), ``email_id`` (``uuid.UUID``), ``move`` (``lifecycle.Move``),
``failure`` (``retry.Failure`` or ``None``).
"""

before_send = Signal()
"""An e-mail is about to be handed to its transport, in a worker, for each try anew.

Arguments: ``sender`` (``EmailLog``), ``email`` (the ``EmailLog``), ``message`` (the
``EmailMessage`` as it will be sent; its recipients are not to be changed).

A receiver that raises ``exceptions.Veto(reason)`` stops the mail: it becomes ``suppressed``, and
its row keeps the reason. One that raises anything else postpones it, as a refusal for now does.
"""

email_event = Signal()
"""Something happened to an e-mail after it was sent, and it is recorded; told once of each event.

Arguments: ``sender`` (``EmailEvent``), ``event`` (the ``EmailEvent``; its ``email_id`` may be
``None`` where the mail is not known, or not known yet).
"""

transport_tripped = Signal()
"""A transport is out of order; no mail is given to it until a probe succeeds.

Arguments: ``sender`` (``DeliveryGate``), ``transport`` (its alias), ``failure``
(``retry.Failure``).
"""

transport_recovered = Signal()
"""A probe got through; the transport is in use again.

Arguments: ``sender`` (``DeliveryGate``), ``transport`` (its alias).
"""
