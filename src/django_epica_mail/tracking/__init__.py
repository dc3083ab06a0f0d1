"""What came back: events, webhooks, and the links that mails carry."""
