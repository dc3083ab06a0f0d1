"""Test importing mail from other packages' tables, with those packages from PyPI."""
