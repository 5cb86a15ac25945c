"""Where the files of the project are."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
#: Bodies and queries as Millis sends them.
SAMPLES = ROOT / "tests" / "samples"
