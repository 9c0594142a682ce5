"""Benchmarks: comparison with other libraries (``benchmarks.peers``), and overheads of the library's own loops."""
