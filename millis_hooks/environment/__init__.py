"""The environment of the service: variables and `.env`, addresses, secrets, private files."""
