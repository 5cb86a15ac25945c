"""What the kernel says of a running server."""

from __future__ import annotations

import os
from pathlib import Path


def status_mb(pid: int, field: str) -> float:
    """Read one field of /proc status, which the kernel gives in kB, in MB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    kilobytes = next(line.split()[1] for line in lines if line.startswith(f"{field}:"))
    return int(kilobytes) / 1024


def cpu_s(pid: int) -> float:
    """Return the seconds that all its threads have computed so far, in user and system mode."""
    after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    user, system = after_name[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
