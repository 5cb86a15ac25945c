"""The dashboard: a Starlette application that can be mounted anywhere.

It reads the call log, and writes sessions of operators, replays, deletions and the audit log.
"""
