"""Where cnnlib's own files lie, and where data sets are kept.

In a checkout `data/` stands beside the package; in a wheel it travels inside it as `_data`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def checkout() -> Path | None:
    """The root of the checkout that this package is imported from, or None for an installed wheel."""
    root = _PACKAGE.parent
    return root if (root / "pyproject.toml").is_file() and (root / "data").is_dir() else None


def data_dir() -> Path:
    """The folder of the files that travel with cnnlib: `claims.yml`, `papers/`, `records/`, `weights/`, embedded images."""
    root = checkout()
    found = root / "data" if root else _PACKAGE / "_data"
    if not found.is_dir():
        raise FileNotFoundError(f"cnnlib's data folder should be at {found} and is not there; install cnnlib again")
    return found


def cache_dir() -> Path:
    """Where downloaded data sets are looked for and kept: `CNNLIB_DATA`, else `data/cache` in a checkout, else the user's cache."""
    if os.environ.get("CNNLIB_DATA"):
        return Path(os.environ["CNNLIB_DATA"]).expanduser()
    root = checkout()
    if root:
        return root / "data" / "cache"
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "cnnlib"
