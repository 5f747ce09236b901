"""Shared code of the benchmarks: programs to start, CPU accounting, load, rounds and ratios."""
