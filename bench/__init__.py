"""Benchmarks: ratios taken in one run, printed, never judged by a test."""
