"""A small shop that sends mail the way Django sites do."""
