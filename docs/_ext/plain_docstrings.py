"""Shows docstrings, which are plain text with code in backticks, and signatures people can use."""

from __future__ import annotations

import re
from typing import Any

from pydantic import BaseModel
from sphinx.application import Sphinx

from millis_hooks import PrefetchRequest, PrefetchResponse

CODE = re.compile(r"`([^`\n]+(?:\n[^`\n]+)?)`")


def as_rst(_app: Sphinx, _kind: str, _name: str, _of: Any, _options: Any, lines: list[str]) -> None:
    """Make code of what is in single backticks, also before a letter, as in `Router`s."""
    lines[:] = CODE.sub(r"``\1``\\ ", "\n".join(lines)).split("\n")


def without_fields(
    _app: Sphinx, kind: str, _name: str, of: Any, _options: Any, *_signature: str | None
) -> tuple[str, None] | None:
    """Leave out the signature of what only the service makes: its fields are listed below it."""
    made_here = kind == "class" and issubclass(of, (BaseModel, PrefetchRequest))
    return ("", None) if made_here and of is not PrefetchResponse else None


def setup(app: Sphinx) -> dict[str, Any]:
    """Take part in the build."""
    app.connect("autodoc-process-docstring", as_rst)
    app.connect("autodoc-process-signature", without_fields)
    return {"parallel_read_safe": True}
