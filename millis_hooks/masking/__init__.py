"""Keeps the call log in order."""
