"""A small shop that sends mail in the ways a Django site does."""
