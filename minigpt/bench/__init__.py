"""Benchmarks on this machine, interleaved, with its peak speed for comparison."""
