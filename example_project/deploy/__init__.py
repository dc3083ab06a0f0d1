"""What the shop needs to run in production: settings, systemd units, containers, log rotation."""
