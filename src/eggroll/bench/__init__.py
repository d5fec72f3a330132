"""Benchmarks of the library on the machine at hand: ratios of interleaved repeats, in one process."""
