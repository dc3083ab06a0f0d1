"""The parts of an e-mail's page: what happened, what to do about it, and its recipients."""
