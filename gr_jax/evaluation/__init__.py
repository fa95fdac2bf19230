"""Metrics, baselines, predictions and reports."""
