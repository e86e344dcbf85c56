"""Benchmarks of this library against other installed libraries, behind `pcattn bench`."""
