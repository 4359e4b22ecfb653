"""Hydra's menu in Python, what it builds, and names of runs."""
