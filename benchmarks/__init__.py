"""Benchmarks: each runs both sides in one run, prints ratios and keeps raw figures."""
