"""The sandbox's page: start a call, hold it by typing, and see the result."""
