"""The examples in the docstrings of every module are true."""

import doctest
import importlib.util
import pkgutil
from pathlib import Path

import pytest

import twinslib

MODULES = [module.name for module in pkgutil.walk_packages(twinslib.__path__, "twinslib.")
           if ">>> " in Path(importlib.util.find_spec(module.name).origin).read_text(encoding="utf-8")]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    """As printed, and there are some."""
    found = doctest.testmod(importlib.import_module(name))
    assert found.attempted and not found.failed
