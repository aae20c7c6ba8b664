"""Fixtures of several unit tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def lone_group(tmp_path: Path) -> Iterator[None]:
    """A process group of this process alone, over gloo; left once the test's own wrappers are gone.

    A wrapper that outlives `destroy_process_group` destroys the group itself and waits, with Python's lock held, for
    threads of torch that may still want that lock: now and then a session hung there for good.
    """
    import torch

    from etrm.training.distributed import finish

    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    finish()
