"""The dashboard, in process."""
