"""Generative recommendation with semantic IDs, in JAX."""

__version__ = "0.1.0"
