"""After the commit: workers claim due mail, send it, and settle the outcome."""
