"""Writes and reads rows: the columns of each table, and statements of our own."""
