"""ARC loading, malformed files, and the known duplicates between and within the public ARC sets."""

import json

import numpy as np
import pytest

from etrm.data.arc import Pair, Task, augment_task, duplicate_groups, fits, load_arc, overlaps, task_from_json
from etrm.data.augment import Augmentation
from etrm.errors import DataError

pytestmark = pytest.mark.fast

PAIR = {"input": [[1, 2], [3, 0]], "output": [[4]]}
TURNED = Augmentation(3, (0, 3, 1, 2, 4, 5, 6, 7, 8, 9))


def made(id: str, *cells: int) -> Task:
    """A task of one-row pairs; the first is its query. Different cells give canonically different pairs."""
    pairs = tuple(Pair(np.array([[1] * (cell + 1)]), np.array([[1]])) for cell in cells)
    return Task(id, pairs[1:], pairs[:1], "test")


@pytest.mark.parametrize(
    ("version", "split", "tasks", "demos", "queries"),
    [
        (1, "training", 400, 1302, 416),
        (1, "evaluation", 400, 1363, 419),
        pytest.param(2, "training", 1000, 3232, 1076, marks=pytest.mark.thorough),
        pytest.param(2, "evaluation", 120, 359, 167, marks=pytest.mark.thorough),
    ],
)
def test_split_has_its_published_size(version, split, tasks, demos, queries):
    loaded = load_arc(version, split)
    assert len(loaded) == tasks
    assert [task.id for task in loaded] == sorted({task.id for task in loaded})
    assert sum(len(task.demos) for task in loaded) == demos
    assert sum(len(task.queries) for task in loaded) == queries
    assert {task.source for task in loaded} == {f"arc{version}/{split}"}


def test_a_known_task_is_read_right():
    task = next(task for task in load_arc(1, "training") if task.id == "007bbfb7")
    assert task.demos[0].input.tolist() == [[0, 7, 7], [7, 7, 7], [0, 7, 7]]
    assert task.demos[0].output.shape == (9, 9)


def test_loads_are_cached_and_read_only():
    task = load_arc(1, "training")[0]
    assert load_arc(1, "training")[0] is task
    with pytest.raises(ValueError, match="read-only"):
        task.demos[0].input[0, 0] = 1


@pytest.mark.parametrize(("version", "split"), [(3, "training"), (1, "train")])
def test_unknown_split_is_refused(version, split):
    with pytest.raises(DataError, match="expected version 1 or 2 and split 'training' or 'evaluation'"):
        load_arc(version, split)


def test_arc1_evaluation_overlaps_training_in_two_known_tasks():
    shared = overlaps(load_arc(1, "training"), load_arc(1, "evaluation"))
    assert shared == (("40853293", "070dd51e"), ("caa06a1f", "50a16a69"))


@pytest.mark.thorough
def test_arc2_training_contains_376_arc1_evaluation_tasks():
    shared = overlaps(load_arc(2, "training"), load_arc(1, "evaluation"))
    assert len({test for _, test in shared}) == 376
    assert [pair for pair in shared if pair[0] != pair[1]] == [("caa06a1f", "50a16a69")]


def test_arc1_training_repeats_itself_in_two_known_groups():
    assert duplicate_groups(load_arc(1, "training")) == (("27a28665", "44f52bb0"), ("8be77c9e", "c9e6f938"))


def test_augmented_duplicates_are_found():
    task = made("a", 1, 2)
    other = augment_task(task, TURNED)
    assert overlaps([task], [other]) == (("a", other.id),)
    assert other.id == "a|||t3|||0312456789"


def test_one_shared_pair_is_an_overlap_and_none_is_not():
    assert overlaps([made("a", 1, 2), made("b", 3, 6)], [made("c", 2, 4), made("d", 5, 7)]) == (("a", "c"),)


def test_a_demonstration_shared_with_a_query_is_an_overlap():
    assert overlaps([made("a", 1, 2)], [made("b", 2, 3)]) == (("a", "b"),)  # a's demonstration is b's query


def test_chains_of_shared_pairs_are_one_group():
    tasks = [
        made("d", 1, 2),
        made("b", 3, 4),
        made("a", 2, 3),
        made("c", 8, 9),
        made("e", 9, 7),
        made("f", 6, 5),
        made("A", 1, 0),
    ]
    assert duplicate_groups(tasks) == (("A", "a", "b", "d"), ("c", "e"))


def test_duplicate_groups_refuses_an_id_twice():
    with pytest.raises(DataError, match="same id"):
        duplicate_groups([made("a", 1, 2), made("a", 3, 4)])


def test_fits_looks_at_every_grid():
    task = Task(
        "a",
        (Pair(np.zeros((2, 3), int), np.zeros((1, 1), int)),),
        (Pair(np.zeros((1, 1), int), np.zeros((5, 1), int)),),
        "test",
    )
    assert fits(task, 5)
    assert not fits(task, 4)


def test_pairs_compare_by_content():
    one, same, other = (Pair(np.array([[c]]), np.array([[1]])) for c in (1, 1, 2))
    assert one == same
    assert hash(one) == hash(same)
    assert one != other


@pytest.mark.parametrize(("demos", "queries", "missing"), [(0, 1, "demonstrations"), (1, 0, "queries")])
def test_tasks_need_demonstrations_and_queries(demos, queries, missing):
    pair = Pair(np.array([[1]]), np.array([[1]]))
    with pytest.raises(DataError, match=f"'a' from here has no {missing}"):
        Task("a", (pair,) * demos, (pair,) * queries, "here")


def test_a_json_file_is_read(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"train": [PAIR, PAIR], "test": [PAIR], "name": "ignored"}), encoding="utf-8")
    task = task_from_json(path)
    assert (task.id, task.source, len(task.demos), len(task.queries)) == ("mine", str(path), 2, 1)
    assert task.demos[1].input.tolist() == PAIR["input"]


def ragged(grid: object, key: str = "train") -> str:
    return json.dumps({"train": [PAIR], "test": [PAIR], key: [PAIR, {"input": [[1]], "output": grid}]})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param(ragged([[1, 2], [3]]), r"train\[1\].output: row 1 has 1 cells", id="ragged"),
        pytest.param(ragged([[0]] * 31), r"train\[1\].output: grid has shape \(31, 1\)", id="31-rows"),
        pytest.param(ragged([[0] * 31] * 31, "test"), r"test\[1\].output: grid has shape \(31, 31\)", id="31x31"),
        pytest.param(ragged([[10]]), r"train\[1\].output: row 0, column 0 is 10", id="colour-10"),
        pytest.param(ragged([[1.5]]), r"column 0 is 1.5", id="float"),
        pytest.param(ragged([]), r"train\[1\].output: expected a non-empty list", id="empty-grid"),
        pytest.param(json.dumps({"train": [], "test": [PAIR]}), "no demonstrations: 'train' is", id="no-demos"),
        pytest.param(json.dumps({"train": [PAIR]}), "no queries: 'test' is missing", id="no-test"),
        pytest.param(
            json.dumps({"train": [PAIR], "test": [{"input": [[1]]}]}), r"test\[0\] has no 'output'", id="unanswered"
        ),
        pytest.param(json.dumps({"train": [3], "test": [PAIR]}), r"train\[0\] is a int", id="pair-is-int"),
        pytest.param(ragged([[float("nan")]]), "NaN is not JSON", id="nan"),
        pytest.param(ragged([[float("inf")]]), "Infinity is not JSON", id="infinity"),
        pytest.param('{"train": [], "train": [], "test": []}', r"duplicate key\(s\) \['train'\]", id="duplicate-keys"),
        pytest.param("[]", "top level is a list", id="list"),
        pytest.param("", "not valid JSON", id="empty-file"),
        pytest.param('{"train": [', "not valid JSON", id="truncated"),
        pytest.param("[" * 100_000, "not valid JSON", id="nested-too-deep"),
    ],
)
def test_malformed_files_are_refused_with_file_and_place(tmp_path, text, message):
    path = tmp_path / "bad.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message) as caught:
        task_from_json(path)
    assert str(caught.value).startswith(str(path))


def test_unreadable_files_are_refused(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        task_from_json(tmp_path / "absent.json")
    (tmp_path / "latin.json").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(DataError, match="cannot be read"):
        task_from_json(tmp_path / "latin.json")
