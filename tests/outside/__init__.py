"""Test the package on what others wrote: the suites of other apps, and sites as people run them."""
