"""Files, tables and keys: what knows nothing of the rest."""
