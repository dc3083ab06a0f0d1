"""What the DNS says about the domains that mail is sent from."""
