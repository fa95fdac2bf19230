"""Experiments: one file each, its sections read by every stage."""
