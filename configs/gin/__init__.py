"""Gin files for T5X's mains; see docs/t5x.md."""
