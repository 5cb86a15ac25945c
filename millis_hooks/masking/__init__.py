"""What is hidden, where it stands, and how errors are reported."""
