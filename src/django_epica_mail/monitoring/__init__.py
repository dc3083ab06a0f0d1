"""Reports the state of the queue: backlog, health, totals, history, metrics and the doctor."""
