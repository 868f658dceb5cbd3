"""What every test run shares: one torch thread a process, and skips that say why (errors in CI, where nothing may be missing)."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

# Before torch or a kernel starts: results of training depend on the number of threads, and workers share the cores.
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[variable] = "1"
os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")

import pytest  # noqa: E402 (the variables above come first)

ROOT = Path(__file__).resolve().parent
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def _missing(item: pytest.Item) -> str | None:
    """Why this test cannot run here, or None."""
    if item.get_closest_marker("site") and not (ROOT / "_build" / "html" / "index.html").is_file():
        return "the site is not built; run `make book` first"
    if item.get_closest_marker("browser") and CHROMIUM is None:
        return "no Chromium found; install the package `chromium`"
    if item.get_closest_marker("realdata") and not os.environ.get("CNNLIB_DATA"):
        return "no real data sets here; set CNNLIB_DATA to the folder that holds them"
    return None


def pytest_runtest_setup(item: pytest.Item) -> None:
    reason = _missing(item)
    if reason is None:
        return
    # CI without CNNLIB_DATA is a CI without the sets (a public runner); a missing browser or site is a fault there.
    if os.environ.get("CI") and not item.get_closest_marker("realdata"):
        pytest.fail(f"{reason} (in CI nothing that should be there is skipped)", pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def chromium() -> str:
    """The browser's path; tests that use it carry the marker `browser`."""
    assert CHROMIUM is not None
    return CHROMIUM
