"""Tests of the shop, with Django's own test tools."""
