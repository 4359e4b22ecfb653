"""Helpers that know nothing of the rest: files, tables, keys, constants."""
