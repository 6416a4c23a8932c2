"""Benchmarks; `python -m scripts.benchmarks` runs most of them."""
