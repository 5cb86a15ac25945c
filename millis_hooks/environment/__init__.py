"""What the service runs in: the environment and `.env`, addresses, secrets, files."""
