"""Serves one application as `millis-hooks run` does, without access lines.

python -m benchmarks.serve IMPORT PORT
"""

from __future__ import annotations

import gc
import sys

gc.disable()  # as `millis-hooks` does; the server turns it on

from millis_hooks.server import serve  # noqa: E402

if __name__ == "__main__":
    serve(sys.argv[1], host="127.0.0.1", port=int(sys.argv[2]))
