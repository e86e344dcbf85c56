"""Benchmarks: this library and other installed ones, side by side in one run. `pcattn bench` runs them."""
