"""The parts of the list of e-mails: what narrows it, what its rows say, and links to it."""
