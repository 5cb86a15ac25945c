"""The command line, at the top of the import graph."""

from __future__ import annotations

import gc


def main() -> None:
    """Run the command line; the `millis-hooks` script."""
    # What starting up makes stays, from the imports on: the collector would only look at it again
    # and again. A server turns it on when it has started, other commands end soon.
    gc.disable()
    from .common import writable_output

    with writable_output():
        from .commands import app

        app()
