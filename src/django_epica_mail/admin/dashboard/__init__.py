"""The dashboard: its headline, its lanes, its charts, and the page of a fresh install."""
