"""The version, the requirement that installs it once more, and where its templates are."""

from pathlib import Path

__version__ = "0.1.0"


def templates_dir() -> Path:
    """Return the folder of templates: inside the package in a wheel, beside it in a checkout."""
    package = Path(__file__).resolve().parent
    shipped = package / "templates"
    return shipped if shipped.is_dir() else package.parent / "templates"


def requirement(extra: str = "") -> str:
    """Return the requirement that installs this package as it was installed here, with an extra.

    For example `millis-hooks[otel]==0.1.0` where it came from an index, and
    `millis-hooks[otel] @ file:///src/millis_hooks` or `… @ git+https://…@commit` where it came from
    an address. Source: PEP 508 (requirements) and PEP 610 (`direct_url.json`).
    """
    import json
    from importlib.metadata import PackageNotFoundError, distribution

    name = f"millis-hooks[{extra}]" if extra else "millis-hooks"
    try:
        origin = json.loads(distribution("millis-hooks").read_text("direct_url.json") or "{}")
    except PackageNotFoundError:
        origin = {}
    if "url" not in origin:
        return f"{name}=={__version__}"
    version_control = origin.get("vcs_info")
    if version_control is None:
        return f"{name} @ {origin['url']}"
    commit = version_control["commit_id"]
    return f"{name} @ {version_control['vcs']}+{origin['url']}@{commit}"
