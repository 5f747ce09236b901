"""What the benchmarks share: programs to start, the kernel's accounting, load, rounds and their ratios."""
