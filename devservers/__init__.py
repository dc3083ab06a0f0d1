"""Start the real servers that tests, demo and benchmarks need, on free ports, and stop them.

Not part of the installed package.
"""
