"""Metrics, traces and log records."""
