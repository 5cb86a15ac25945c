"""A dashboard over a call log in a temporary file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.dashboard_site import Site


@pytest.fixture
def anonymous(tmp_path: Path) -> Iterator[Site]:
    """A dashboard, and a browser that is not signed in."""
    site = Site(tmp_path)
    yield site
    site.stored.database.close()


@pytest.fixture
def site(anonymous: Site) -> Site:
    """The same, signed in as an operator."""
    anonymous.be_signed_in()
    return anonymous
