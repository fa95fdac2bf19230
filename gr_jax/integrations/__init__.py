"""Bridges to other training systems; optional."""
