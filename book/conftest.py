"""`pytest --nbval book`: the lectures' kernels start as under the page profile, whatever this process has."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cnnlib.notebooks import CELL_SECONDS, page_environment

NO_DATA = tempfile.TemporaryDirectory(prefix="no-data-")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    """nbval starts a notebook's kernel in the set-up of its first cell, with the environment of this process."""
    option = item.config.option
    option.nbval_cell_timeout = min(option.nbval_cell_timeout, CELL_SECONDS)
    option.nbval_sanitize_with = option.nbval_sanitize_with or str(
        Path(__file__).parent.parent / ".nbval.ini"
    )
    option.nbval_current_env = option.nbval_kernel_name is None
    before = dict(os.environ)
    os.environ.update(page_environment(NO_DATA.name))
    try:
        done = yield
    finally:
        os.environ.clear()
        os.environ.update(before)
    _with_history(item.parent.kernel.kc)
    return done


def _with_history(client: Any) -> None:
    """Let the kernel remember its cells, as a notebook does: IPython looks there for the `;` that silences a cell's value."""
    if not hasattr(client, "forgetful"):
        client.forgetful = client.execute
        client.execute = lambda *given, **options: client.forgetful(
            *given, **{**options, "store_history": True}
        )
