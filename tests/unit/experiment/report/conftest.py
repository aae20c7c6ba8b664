"""The invented run folder, as a fixture."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def write_run() -> Callable[..., Path]:
    """`write_run(folder, scenario, arm, updates, shown, side)` of demo_run.py."""
    spec = importlib.util.spec_from_file_location("demo_run", Path(__file__).with_name("demo_run.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: Callable[..., Path] = module.write_run
    return found
