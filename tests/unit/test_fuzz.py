"""Every reader of files, a few damaged files each; scripts/fuzz.py gives them thousands."""

import random
from pathlib import Path

import pytest

from etrm.errors import EtrmError
from tests.fuzz_targets import TARGETS

pytestmark = pytest.mark.fast


@pytest.mark.thorough
@pytest.mark.parametrize("name", TARGETS)
def test_damaged_files_end_in_one_typed_error_or_are_taken_rightly(name: str, tmp_path: Path) -> None:
    target = TARGETS[name]
    for number in range(6):
        folder = tmp_path / str(number)
        folder.mkdir()
        draw = random.Random(f"test/{name}/{number}")
        path = target.make(folder, draw)
        target.damage(path, draw)
        try:
            result = target.read(path)
        except EtrmError as error:
            assert "\n" not in str(error)
            continue
        assert target.wrong(result, path) is None


@pytest.mark.parametrize("name", TARGETS)
def test_the_undamaged_sample_is_taken(name: str, tmp_path: Path) -> None:
    path = TARGETS[name].make(tmp_path, random.Random(0))
    assert TARGETS[name].wrong(TARGETS[name].read(path), path) is None
