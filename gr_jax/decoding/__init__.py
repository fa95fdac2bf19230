"""Turns next-token scores into valid semantic IDs; knows no model."""
