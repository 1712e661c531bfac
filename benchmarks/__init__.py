"""Benchmarks against other task systems: `python -m benchmarks --help`. Not part of the distribution."""
