"""The dashboard's pages, read from its routes, so that a new page is tested too."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlencode

from sqlalchemy import select
from starlette.routing import BaseRoute, Route

from millis_hooks.call_log.tables import calls, deliveries, rejections
from support.dashboard_site import Site as InProcess
from support.storage import opened

#: What each parameter of a path stands for, by the column that has its values.
EXAMPLES = {
    "session_id": calls.c.session_id,
    "delivery_id": deliveries.c.id,
    "rejection_id": rejections.c.id,
}
#: Pages that are about something their query names, and how many of these are opened.
IN_QUERY = {"forget": "session_id"}
_ENOUGH = 5
#: A page of nothing; tests/dashboard/test_pages.py asks for others.
NOT_THERE = "/calls/-nobody"


def page_names() -> list[str]:
    """Return the names of the pages: of what has a JSON twin."""
    names = {route.name for route in _routes()}
    return sorted(name for name in names if f"{name}_json" in names)


def paths_of(name: str, folder: Path) -> Iterator[str]:
    """Yield the paths of a page, with every value its parameter has in the log of a folder."""
    route = next(route for route in _routes() if route.name == name)
    if name in IN_QUERY:
        values = examples(IN_QUERY[name], folder)[:_ENOUGH]
        yield from (f"{route.path}?{urlencode({IN_QUERY[name]: value})}" for value in values)
        return
    if not route.param_convertors:
        yield route.path
        return
    (parameter,) = route.param_convertors
    for value in examples(parameter, folder):
        yield str(route.url_path_for(name, **{parameter: value}))


def examples(parameter: str, folder: Path) -> list[str]:
    """Return every value that a parameter of a path can have."""
    with opened(folder) as database, database.reader.connect() as connection:
        return [str(value) for value in connection.scalars(select(EXAMPLES[parameter]))]


@cache
def _routes() -> list[Route]:
    with TemporaryDirectory() as folder:
        site = InProcess(Path(folder))
        routes: list[BaseRoute] = list(site.app.routes)
        site.stored.database.close()
    return [each for each in routes if isinstance(each, Route) and "GET" in (each.methods or ())]
