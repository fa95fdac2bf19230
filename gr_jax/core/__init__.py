"""Pieces that every stage shares; imports nothing else of gr_jax."""
