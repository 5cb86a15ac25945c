"""Handler runs after the acknowledgement: what is to do, who does it, and how it went."""
