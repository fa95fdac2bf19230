"""From codes to unique semantic IDs and tokens."""
