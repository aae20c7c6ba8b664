"""Augmentations: ids and names against golden numbers of the public TRM implementation, exact inversion, sampling.

The golden file (made with TRM commit e7b6871) holds the eight dihedral transforms of one grid and one inversion of a
named augmentation. Comparison is exact.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etrm.data.arc import Pair, Task, augment_task
from etrm.data.augment import IDENTITY, INVERSE_DIHEDRAL, Augmentation, dihedral, parse_name, sample_augmentations
from etrm.errors import DataError

pytestmark = pytest.mark.fast
law = settings(deadline=None, derandomize=True, max_examples=60)

GOLDEN = json.loads((Path(__file__).parents[1] / "data_golden" / "grid_encoding.json").read_text(encoding="utf-8"))


def noise(h: int, w: int, seed: int) -> np.ndarray:
    """Cells of numpy's generator: hypothesis' own arrays are nearly constant, and constant grids hide transforms."""
    return np.random.default_rng(seed).integers(0, 10, (h, w)).astype(np.uint8)


permutations = st.permutations(range(1, 10)).map(lambda order: (0, *order))


def task_of(*pairs: tuple[object, object]) -> Task:
    made = tuple(Pair(np.array(inp), np.array(out)) for inp, out in pairs)
    return Task("base", made[1:], made[:1], "test")


ASYMMETRIC = task_of(([[1, 2, 3], [0, 4, 5]], [[6, 7]]), ([[1, 0], [8, 2]], [[9]]))


@pytest.mark.parametrize("t", range(8))
def test_transform_equals_golden(t):
    golden = GOLDEN["dihedral"]
    transformed = dihedral(np.array(golden["base"]), t)
    assert transformed.tolist() == golden["transformed"][str(t)]
    assert transformed.flags.c_contiguous


@pytest.mark.parametrize("t", range(8))
def test_inverse_transform_restores_golden_base(t):
    golden = GOLDEN["dihedral"]
    assert dihedral(np.array(golden["transformed"][str(t)]), INVERSE_DIHEDRAL[t]).tolist() == golden["base"]


def test_inversion_by_name_equals_golden():
    golden = GOLDEN["inverse_augmentation"]
    base_id, augmentation = parse_name(golden["name"])
    assert base_id == golden["base_id"]
    assert augmentation.invert(np.array(golden["grid"], np.uint8)).tolist() == golden["result"]
    assert augmentation.name(base_id) == golden["name"]


@pytest.mark.parametrize("t", range(8))
@settings(law, max_examples=20)
@given(st.builds(noise, st.integers(0, 30), st.integers(0, 30), st.integers(0, 999)), permutations)
def test_invert_undoes_apply(t, grid, colours):
    augmentation = Augmentation(t, colours)
    assert np.array_equal(augmentation.invert(augmentation.apply(grid)), grid)
    assert np.array_equal(augmentation.apply(augmentation.invert(grid)), grid)
    assert augmentation.apply(grid).dtype == np.uint8


@law
@given(st.integers(0, 7), permutations)
def test_name_round_trip(t, colours):
    augmentation = Augmentation(t, colours)
    assert parse_name(augmentation.name("0a1b2c3d")) == ("0a1b2c3d", augmentation)


def test_permutation_says_where_each_colour_goes():
    assert Augmentation(0, (0, 3, 1, 2, 4, 5, 6, 7, 8, 9)).apply(np.array([[1, 2, 3]])).tolist() == [[3, 1, 2]]


def test_identity_keeps_the_base_id():
    assert IDENTITY.name("base") == "base"
    assert parse_name("base") == ("base", IDENTITY)


@pytest.mark.parametrize(
    "name",
    [
        "task|||t8|||0123456789",
        "task|||3|||0123456789",
        "task|||t3",
        "task|||t3|||012345678",
        "task|||t3|||0123456788",
        "task|||t3|||1023456789",
        "task|||t3|||0123456789|||t1",
        "|||t3|||0123456789",
        "task|||t-1|||0123456789",
        "task|||t\u0663|||0123456789",
    ],
)
def test_malformed_names_are_refused(name):
    with pytest.raises(DataError, match="malformed, expected base_id"):
        parse_name(name)


def test_augmenting_twice_is_refused():
    flip = Augmentation(4, IDENTITY.colours)
    with pytest.raises(DataError, match="already augmented; augment its base task 'base'"):
        augment_task(augment_task(ASYMMETRIC, flip), flip)


@pytest.mark.parametrize("t", [-1, 8])
def test_unknown_transform_is_refused(t):
    with pytest.raises(DataError, match=f"{t}, expected 0..7"):
        dihedral(np.zeros((1, 1), np.uint8), t)
    with pytest.raises(DataError, match=f"{t}, expected 0..7"):
        Augmentation(t, IDENTITY.colours)


@pytest.mark.parametrize("colours", [(0, 1), (1, 0, *range(2, 10)), (0, 1, 1, *range(3, 10)), tuple(range(1, 11))])
def test_colours_must_be_a_permutation_that_fixes_zero(colours):
    with pytest.raises(DataError, match=r"permutation of 0..9 that keeps 0 in place"):
        Augmentation(0, colours)


def test_samples_are_unique_by_result_and_start_with_the_identity():
    found = sample_augmentations(ASYMMETRIC, 40, np.random.default_rng(0))
    assert len(found) == 40
    assert found[0] == IDENTITY
    results = {augment_task(ASYMMETRIC, a).demos + augment_task(ASYMMETRIC, a).queries for a in found}
    assert len(results) == 40
    assert {a.transform for a in found} == set(range(8))


def test_sampling_is_a_function_of_the_generator():
    draws = [sample_augmentations(ASYMMETRIC, 20, np.random.default_rng(seed)) for seed in (1, 1, 2)]
    assert draws[0] == draws[1]
    assert draws[0] != draws[2]


def test_without_colours_there_are_eight():
    found = sample_augmentations(ASYMMETRIC, 8, np.random.default_rng(0), retries=50, colours=False)
    assert sorted(a.transform for a in found) == list(range(8))
    assert {a.colours for a in found} == {IDENTITY.colours}


def test_a_task_without_variants_gives_the_identity_alone():
    assert sample_augmentations(task_of(([[0]], [[0]]), ([[0]], [[0]])), 9, np.random.default_rng(0)) == [IDENTITY]


@pytest.mark.parametrize(("count", "retries"), [(0, 5), (5, 0)])
def test_asking_for_nothing_is_refused(count, retries):
    with pytest.raises(DataError, match="at least 1"):
        sample_augmentations(ASYMMETRIC, count, np.random.default_rng(0), retries)
