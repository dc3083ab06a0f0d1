"""How the queue stands: backlog, health, totals, metrics and the doctor."""
