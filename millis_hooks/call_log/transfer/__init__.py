"""Out and in: calls as CSV and JSON lines, and back from JSON lines."""
