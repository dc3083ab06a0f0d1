"""Start and stop the real servers that tests, demo and benchmarks need, on free ports.

Not part of the installed package.
"""
