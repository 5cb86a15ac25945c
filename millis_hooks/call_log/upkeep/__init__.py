"""Removal, retention, backup, vacuum and reprocessing of the call log."""
