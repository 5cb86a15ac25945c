"""`python -m millis_hooks`, where the script `millis-hooks` is not on the path."""

from __future__ import annotations

from .cli import main

if __name__ == "__main__":
    main()
