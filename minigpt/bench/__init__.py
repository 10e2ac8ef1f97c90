"""Benchmarks on this machine: times in alternation, and its peak speed to compare with."""
