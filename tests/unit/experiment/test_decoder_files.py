"""Two files, one decoder? Bits, structure and function, and what cannot be compared."""

import dataclasses
from pathlib import Path

import pytest
import torch
import yaml

from etrm.errors import BundleError, CheckpointError
from etrm.experiment.decoder_files import compare, open_decoder
from etrm.models.official import write_bundle_once
from tests.official_samples import TINY, official_state, write_official

pytestmark = pytest.mark.fast

HEAD = "_orig_mod.model.inner.lm_head.weight"


@pytest.fixture
def official(tmp_path: Path) -> Path:
    return write_official(tmp_path / "arc_v1_public")


def ours(folder: Path, state: dict[str, torch.Tensor], ema: dict[str, torch.Tensor] | None = None, arch=None) -> Path:
    """A step_N as training writes it, in the parts that matter here."""
    folder.mkdir()
    if arch is not None:
        (folder / "all_config.yaml").write_text(yaml.dump({"arch": arch}))
    bare = {name.removeprefix("_orig_mod.model.inner."): t for name, t in state.items() if "puzzle" not in name}
    model = {f"model.decoder.{name}": t for name, t in bare.items()} | {"model.encoder.x": torch.zeros(3)}
    averaged = None if ema is None else {f"model.decoder.{name}": t for name, t in ema.items()}
    torch.save({"format": 1, "model": model, "ema": averaged, "step": 5, "config": {"run": "r"}}, folder / "step_5")
    return folder / "step_5"


def arch_of(official: Path) -> dict[str, object]:
    arch: dict[str, object] = yaml.safe_load((official.parent / "all_config.yaml").read_text())["arch"]
    return arch


@pytest.mark.thorough
def test_the_same_decoder_in_three_kinds_of_file(official: Path, tmp_path: Path) -> None:
    write_bundle_once(official, tmp_path / "bundle")
    step = ours(tmp_path / "run", official_state(TINY, 400), arch=arch_of(official))
    files = [open_decoder(path) for path in (official, tmp_path / "bundle", step)]
    assert [f.kind for f in files] == ["official checkpoint", "bundle", "etrm checkpoint"]
    for a in files:
        for b in files:
            found = compare(a, b)
            assert found.same
            assert (found.structure, found.function, len(found.rows)) == ((), (), 10)
    assert files[2].facts["step"] == 5
    assert files[0].facts["table"] == [400, 32]


def test_one_flipped_bit_is_found_and_named(official: Path, tmp_path: Path) -> None:
    state = official_state(TINY, 400)
    state[HEAD].view(torch.int32)[3, 4] ^= 1  # far below any tolerance
    found = compare(open_decoder(official), open_decoder(ours(tmp_path / "run", state, arch=arch_of(official))))
    assert not found.same
    (row,) = [row for row in found.rows if row.state != "equal"]
    assert (row.name, row.state) == ("lm_head.weight", "differs")
    assert row.detail.startswith("1 of 384 numbers differ")
    assert found.structure == ()


def test_equal_weights_with_other_cycles_are_another_decoder(official: Path, tmp_path: Path) -> None:
    step = ours(tmp_path / "run", official_state(TINY, 400), arch=arch_of(official) | {"L_cycles": 4})
    found = compare(open_decoder(official), open_decoder(step))
    assert all(row.state == "equal" for row in found.rows)
    assert found.structure == ("l_cycles: 2, 4",)
    assert found.function is not None
    assert found.function[0].startswith("logits differ by up to ")
    assert not found.same


def test_heads_are_seen_although_no_tensor_shows_them(official: Path, tmp_path: Path) -> None:
    step = ours(tmp_path / "run", official_state(TINY, 400), arch=arch_of(official) | {"num_heads": 4})
    found = compare(open_decoder(official), open_decoder(step))
    assert found.structure == ("num_heads: 2, 4",)
    assert not found.same


def test_a_drifted_average_is_not_hidden_behind_raw_weights(official: Path, tmp_path: Path) -> None:
    state = official_state(TINY, 400)
    ema = {"lm_head.weight": state[HEAD] + 1e-6, "q_head.bias": torch.full((2,), -5.0)}
    found = compare(open_decoder(official), open_decoder(ours(tmp_path / "run", state, ema, arch_of(official))))
    assert [(row.name, row.state) for row in found.averaged] == [
        ("ema of lm_head.weight", "differs"),
        ("ema of q_head.bias", "equal"),
    ]
    assert not found.same


def test_a_checkpoint_that_keeps_its_structure_to_itself(official: Path, tmp_path: Path) -> None:
    silent = open_decoder(ours(tmp_path / "run", official_state(TINY, 400)))
    found = compare(open_decoder(official), silent)
    assert found.same
    assert found.structure is None
    assert "only one file tells its structure" in found.note
    with pytest.raises(CheckpointError, match="without cycles no decoder is known"):
        compare(silent, silent)


def test_lacking_and_misshapen_tensors_are_differences(official: Path, tmp_path: Path) -> None:
    state = official_state(TINY, 400)
    state[HEAD] = torch.zeros(12, 16)
    del state["_orig_mod.model.inner.q_head.bias"]
    found = compare(open_decoder(official), open_decoder(ours(tmp_path / "run", state)))
    states = {row.name: row.state for row in found.rows if row.state != "equal"}
    assert states == {"lm_head.weight": "shape", "q_head.bias": "missing in B"}
    assert found.function is None
    assert not found.same


def test_another_architecture_is_compared_by_name(official: Path, tmp_path: Path) -> None:
    deeper = write_official(tmp_path / "deeper", dataclasses.replace(TINY, layers=2))
    found = compare(open_decoder(official), open_decoder(deeper))
    assert found.structure == ("layers: 1, 2",)
    assert {row.state for row in found.rows if "layers.1" in row.name} == {"missing in A"}
    assert found.function is None


def test_an_encoder_beside_the_decoder_is_no_fault(official: Path, tmp_path: Path) -> None:
    state = official_state(TINY, 400) | {"_orig_mod.model.encoder.out.weight": torch.zeros(3)}
    other = write_official(tmp_path / "etrm")
    torch.save(state, other)
    opened = open_decoder(other)
    assert opened.facts["encoder_tensors"] == 1
    assert compare(open_decoder(official), opened).same


@pytest.mark.parametrize("damage", ["missing", "truncated", "other dict", "no decoder"])
def test_what_cannot_be_opened_says_so(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "step_5"
    if damage == "truncated":
        torch.save({"format": 1, "model": {}}, path)
        path.write_bytes(path.read_bytes()[:-40])
    elif damage == "other dict":
        torch.save({"weights": 3}, path)
    elif damage == "no decoder":
        torch.save({"format": 1, "model": {"model.encoder.x": torch.zeros(2)}}, path)
    words = {
        "missing": "does not exist",
        "truncated": "truncated",
        "other dict": "no official",
        "no decoder": "no decoder",
    }
    with pytest.raises(CheckpointError, match=words[damage]):
        open_decoder(path)


def test_a_folder_without_a_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError):
        open_decoder(tmp_path)
