"""The command line, at the top of the import graph."""

from __future__ import annotations

import gc


def main() -> None:
    """Run the command line; the `millis-hooks` script."""
    # Objects made while starting live to the end: the collector would look at them again and again.
    # A server turns it on once it has started; other commands end soon.
    gc.disable()
    from .terminal import writable_output

    with writable_output():
        from .commands import app

        app()
