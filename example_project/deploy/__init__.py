"""Everything the shop needs in production: settings, systemd units, containers, log rotation."""
