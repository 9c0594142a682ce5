"""Measurements beside the package: against other libraries (``benchmarks.peers``), and of the sampling loop alone."""
