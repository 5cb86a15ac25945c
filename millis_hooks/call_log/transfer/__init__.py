"""Export and import of calls as CSV and JSON lines, and copies of whole call logs."""
