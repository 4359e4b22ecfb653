"""Hydra's menu in Python, and names of runs."""
