"""Examples in docstrings give what they show."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import cnnlib

MODULES = sorted(
    module.name for module in pkgutil.walk_packages(cnnlib.__path__, "cnnlib.") if not module.name.endswith("__main__")
)


@pytest.mark.parametrize("module", ["cnnlib", *MODULES])
def test_the_examples_of_a_module_give_what_they_show(module):
    assert doctest.testmod(importlib.import_module(module)).failed == 0


def test_there_are_examples_to_try():
    finder = doctest.DocTestFinder()
    examples = [test for module in MODULES for test in finder.find(importlib.import_module(module)) if test.examples]
    assert len(examples) > 10
