"""Folders whose names are numbers: tokens of leases, and the steps of checkpoints below them."""

import re
from pathlib import Path

NUMBER = re.compile(r"[0-9]{1,19}")


def numbered(folder: Path) -> list[tuple[int, Path]]:
    """Those in *folder*, the highest first; whatever else lies there is not looked at. Raises `OSError`."""
    found = [(int(path.name), path) for path in folder.iterdir() if NUMBER.fullmatch(path.name) and path.is_dir()]
    return sorted(found, reverse=True)
