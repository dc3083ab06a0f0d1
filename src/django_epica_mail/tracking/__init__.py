"""Tracking: the links that mails carry, provider webhooks, and the events they record."""
