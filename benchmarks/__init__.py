"""Benchmarks that developers run: ratios of medians, measured side by side in one run."""
