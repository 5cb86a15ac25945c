"""Out and in: calls as CSV, JSON lines and Parquet, and back from JSON lines."""
