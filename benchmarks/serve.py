"""Serves one application as `millis-hooks run` does, without access lines.

python -m benchmarks.serve IMPORT PORT
"""

from __future__ import annotations

import sys

from millis_hooks.server import serve

if __name__ == "__main__":
    serve(sys.argv[1], host="127.0.0.1", port=int(sys.argv[2]))
