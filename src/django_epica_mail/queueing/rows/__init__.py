"""Writes rows: the columns of each table, and the statements that insert them."""
