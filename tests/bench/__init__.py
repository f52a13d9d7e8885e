"""Benchmarks: run by ``scripts/bench``, never asserted as times in tests."""
