"""Addresses of artifacts: their paths from the folder `results` on, which are the same on every machine."""

from pathlib import Path

RESULTS = "results"


def address(path: str | Path) -> str:
    """Return the path of an artifact from its folder `results` on, the same on every machine; else its bare name.

    A project may lie in a folder `results`, too; no choice may have this name (workflow/config/names.py).
    """
    parts = Path(path).parts
    return "/".join(parts[-1 - parts[::-1].index(RESULTS) :] if RESULTS in parts else parts[-1:])


def owners(path: str | Path) -> list[str]:
    """Return the addresses under which an artifact may have been made: its own, its pair's, a folder's above it."""
    own = Path(address(path))
    return [str(one) for one in (own, own.with_suffix(".safetensors"), *own.parents)]


def may_be(path: str | Path, made_as: str) -> bool:
    """Tell whether a file below results/ may have been made under this address; elsewhere, files may be moved."""
    kept = RESULTS not in Path(path).parts or Path(address(path)).parts[1:2] == (".finished",)
    return kept or made_as in owners(path)
