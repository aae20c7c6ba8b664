"""The official checkpoint's reader: it loads the file bit for bit, and refuses what does not fit in one sentence.

Every file here is synthetic, with the official names, prefixes and config keys (see tests/official_samples.py).
"""

import dataclasses
import json
import pickle
from pathlib import Path

import pytest
import torch
import yaml

from etrm.cli.main import main as etrm_command
from etrm.errors import BundleError, CheckpointError
from etrm.models import official
from etrm.models.bundle import golden_pass, load_bundle
from etrm.models.official import load_official, resolve_bundle, write_bundle_once
from etrm.models.official_file import map_state, missing_message, open_official
from etrm.models.trm import Structure, from_official
from tests.official_samples import FULL, TINY, official_config, official_state, write_official

pytestmark = pytest.mark.fast

STRUCTURES = {
    "rope": TINY,
    "learned": dataclasses.replace(TINY, pos_encodings="learned"),
    "mlp_t": dataclasses.replace(TINY, pos_encodings="none", mlp_t=True),
    "bf16, L 3": dataclasses.replace(TINY, forward_dtype="bfloat16", h_cycles=1, l_cycles=3, layers=2),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "arc_v1_public"


@pytest.mark.parametrize("name", STRUCTURES)
def test_decoder_is_the_files_bit_for_bit(folder: Path, name: str) -> None:
    structure = STRUCTURES[name]
    path = write_official(folder, structure)
    bundle = load_official(path)
    assert bundle.structure == structure
    state = torch.load(path, weights_only=True)
    reference, table = from_official(state, official_config(structure)["arch"] | {"vocab_size": 12, "seq_len": 81})
    assert table is not None
    for key, value in reference.state_dict().items():
        assert torch.equal(bundle.decoder.state_dict()[key], value), key
    inputs, context = torch.randint(0, 12, (2, 81)), torch.randn(2, 2, 32)
    for mine, theirs in zip(
        golden_pass(bundle.decoder, inputs, context), golden_pass(reference, inputs, context), strict=True
    ):
        assert torch.equal(mine, theirs)
    assert not any(p.requires_grad for p in bundle.decoder.parameters())


@pytest.mark.thorough
def test_the_public_checkpoints_structure_comes_from_its_own_config(folder: Path) -> None:
    path = write_official(folder, FULL, rows=2)
    file = open_official(path)
    assert (file.structure.l_cycles, file.structure.h_cycles, file.structure.seq_len) == (4, 3, 900)
    assert file.structure == FULL
    assert len(file.names) == 14


@pytest.mark.parametrize("prefix", ["", "model.inner.", "module.model.inner.", "_orig_mod.model.inner."])
def test_every_wrappers_prefix_is_read(folder: Path, prefix: str) -> None:
    bundle = load_official(write_official(folder, prefix=prefix))
    assert torch.equal(bundle.decoder.lm_head.weight, official_state(TINY, 400, prefix="")["lm_head.weight"])


def test_provenance_says_what_the_decoder_knows(folder: Path) -> None:
    provenance = load_official(write_official(folder)).provenance
    assert provenance.recipe.startswith("public checkpoint arc_v1_public/step_518071, sha256 ")
    assert (provenance.updates, provenance.seed, len(provenance.task_ids)) == (518071, 0, 800)
    assert "007bbfb7" in provenance.task_ids  # ARC-1 training
    assert "00576224" in provenance.task_ids  # ARC-1 evaluation: its demonstrations were trained on too


def test_loading_draws_no_random_numbers_of_the_caller(folder: Path) -> None:
    path = write_official(folder)
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    load_official(path)
    assert torch.equal(torch.rand(4), expected)


def test_a_spread_sample_stands_for_the_table(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(official, "TABLE_SAMPLE", 20)
    path = write_official(folder, rows=400)
    bundle = load_official(path)
    rows = [int(name.removeprefix("row_")) for name in bundle.provenance.row_names]
    assert rows == [1, 22, 43, 64, 85, 106, 127, 148, 169, 190, 210, 231, 252, 273, 294, 315, 336, 357, 378, 399]
    whole = official_state(TINY, 400, prefix="")["puzzle_emb.weights"]
    assert torch.equal(bundle.table, whole[rows])
    assert "20 of 400" in bundle.provenance.ceiling["note"]
    # A row fills the first token only; the others are zero for every task.
    assert torch.allclose(bundle.context_mean[0], whole[rows].mean(dim=0))
    assert bundle.context_std[0] > 0.2
    assert bundle.context_std[1] == 0
    assert not bundle.context_mean[1].any()


def test_named_rows_can_be_kept(folder: Path) -> None:
    path = write_official(folder)
    bundle = load_official(path, rows={"aa": 7, "bb": 3})
    assert bundle.row_of("bb") == 1
    assert torch.equal(bundle.table[1], official_state(TINY, 400, prefix="")["puzzle_emb.weights"][3])
    with pytest.raises(CheckpointError, match="400 rows; cc asks for row 400"):
        load_official(path, rows={"cc": 400})


def test_sha256_is_recorded_once_and_compared(folder: Path) -> None:
    path = write_official(folder)
    sha = load_official(path).sha256
    note = path.with_name("step_518071.sha256")
    assert note.read_text() == f"{sha}  step_518071\n"
    assert load_official(path).sha256 == sha
    torch.save(official_state(TINY, 400, seed=1), path)
    with pytest.raises(CheckpointError, match="has changed"):
        load_official(path)
    assert note.read_text().startswith(sha)


def test_a_missing_file_tells_where_it_is_published(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist") as caught:
        load_official(folder / "step_518071")
    message = str(caught.value)
    assert "https://huggingface.co/arcprize/trm_arc_prize_verification" in message
    assert "pip install -e '.[official]'" in message
    assert f"arc_v1_public/step_518071 arc_v1_public/all_config.yaml --local-dir {folder.parent}" in message
    assert "--local-dir checkpoints/official_trm" in missing_message(Path("elsewhere/step_9"))


class Bomb:
    """Unpickled, it makes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.target,))


@pytest.mark.parametrize("container", ["torch zip", "bare pickle"])
def test_a_pickle_that_would_run_code_is_refused_and_not_run(folder: Path, container: str) -> None:
    path, target = write_official(folder), folder / "ran"
    payload = official_state(TINY, 4) | {"extra": Bomb(target)}
    if container == "torch zip":
        torch.save(payload, path)
    else:
        path.write_bytes(pickle.dumps(payload["extra"]))
    with pytest.raises(
        CheckpointError, match="refused and not run" if container == "torch zip" else "no torch checkpoint"
    ):
        load_official(path)
    assert not target.exists()
    torch.load(path, weights_only=False) if container == "torch zip" else pickle.loads(path.read_bytes())
    assert target.exists()  # the bomb is live, so the lines above mean something


@pytest.mark.parametrize("keep", [0, 100, 0.5, 0.999])
def test_a_truncated_file_is_refused(folder: Path, keep: float) -> None:
    path = write_official(folder)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep if keep > 1 else keep * len(whole))])
    with pytest.raises(CheckpointError, match="truncated"):
        load_official(path)


@pytest.mark.parametrize("payload", [[1, 2], {}, {"step": 3}, torch.zeros(3)])
def test_something_else_than_named_tensors_is_refused(folder: Path, payload: object) -> None:
    path = write_official(folder)
    torch.save(payload, path)
    with pytest.raises(CheckpointError, match="no official state dict"):
        load_official(path)


def other_architecture(state: dict[str, torch.Tensor]) -> None:
    state["_orig_mod.model.inner.H_level.layers.0.mlp.down_proj.weight"] = torch.zeros(3, 3)


def misshapen(state: dict[str, torch.Tensor]) -> None:
    state["_orig_mod.model.inner.lm_head.weight"] = torch.zeros(12, 31)


def lacking(state: dict[str, torch.Tensor]) -> None:
    del state["_orig_mod.model.inner.q_head.bias"]


def not_finite(state: dict[str, torch.Tensor]) -> None:
    state["_orig_mod.model.inner.lm_head.weight"][3, 3] = torch.nan


def twice(state: dict[str, torch.Tensor]) -> None:
    state["lm_head.weight"] = torch.zeros(12, 32)


def without_table(state: dict[str, torch.Tensor]) -> None:
    del state["_orig_mod.model.inner.puzzle_emb.weights"]


def flat_table(state: dict[str, torch.Tensor]) -> None:
    state["_orig_mod.model.inner.puzzle_emb.weights"] = torch.zeros(64)


def wide_table(state: dict[str, torch.Tensor]) -> None:
    state["_orig_mod.model.inner.puzzle_emb.weights"] = torch.zeros(400, 64)


def other_model(state: dict[str, torch.Tensor]) -> None:
    state.clear()
    state["blocks.0.weight"] = torch.zeros(3)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (other_architecture, "unexpected H_level.layers.0.mlp.down_proj.weight"),
        (misshapen, "lm_head.weight is (12, 31), expected (12, 32)"),
        (lacking, "missing q_head.bias"),
        (not_finite, "lm_head.weight is not finite"),
        (twice, "are both 'lm_head.weight'"),
        (without_table, "has no puzzle table"),
        (flat_table, "puzzle table is (64,)"),
        (wide_table, "puzzle_emb_ndim is 32 there, 64 in the tensors"),
        (other_model, "is no TRM checkpoint"),
    ],
)
def test_tensors_that_do_not_fit_are_named(folder: Path, change, told: str) -> None:
    path = write_official(folder)
    state = official_state(TINY, 400)
    change(state)
    torch.save(state, path)
    with pytest.raises(CheckpointError) as caught:
        load_official(path)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("hidden_size", 64, "hidden_size is 64 there, 32 in the tensors"),
        ("L_layers", 2, "L_layers is 2 there, 1 in the tensors"),
        ("mlp_t", True, "mlp_t is True there, False in the tensors"),
        ("expansion", 20, "expansion is 20 there"),
        ("vocab_size", 13, "vocab_size is 13 there, 12 in the tensors"),
        ("pos_encodings", "learned", "pos_encodings is 'learned' there"),
        ("pos_encodings", "alibi", "expected one of rope, learned, none"),
        ("L_cycles", "4", "L_cycles is '4', expected a count"),
        ("L_cycles", 0, "L_cycles is 0, expected a count"),
        ("H_cycles", True, "H_cycles is True"),
        ("num_heads", 5, "num_heads 5 does not divide hidden_size 32"),
        ("forward_dtype", "float16", "forward_dtype is 'float16'"),
        ("rms_norm_eps", "small", "rms_norm_eps is 'small'"),
    ],
)
def test_a_config_that_disagrees_is_refused_not_merged(folder: Path, key: str, value: object, told: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        load_official(write_official(folder, **{key: value}))
    assert told in str(caught.value)
    assert "all_config.yaml" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "only it tells the cycles"),
        ("", "no section 'arch'"),
        ("arch: 3", "no section 'arch'"),
        ("arch: [", "cannot be read"),
        ("arch: !!python/object/apply:os.system ['true']", "cannot be read"),
    ],
)
def test_a_config_that_cannot_be_read_is_refused(folder: Path, text: str | None, told: str) -> None:
    path = write_official(folder)
    config = folder / "all_config.yaml"
    config.unlink() if text is None else config.write_text(text)
    with pytest.raises(CheckpointError, match=told):
        load_official(path)


def test_a_needed_key_has_no_default(folder: Path) -> None:
    path = write_official(folder)
    config = yaml.safe_load((folder / "all_config.yaml").read_text())
    del config["arch"]["L_cycles"]
    (folder / "all_config.yaml").write_text(yaml.dump(config))
    with pytest.raises(CheckpointError, match="arch lacks L_cycles"):
        load_official(path)


def test_learned_positions_tell_the_canvas(folder: Path) -> None:
    structure: Structure = STRUCTURES["learned"]
    path = write_official(folder, structure)
    config = yaml.safe_load((folder / "all_config.yaml").read_text())
    del config["arch"]["seq_len"]
    (folder / "all_config.yaml").write_text(yaml.dump(config))
    assert open_official(path).structure == structure


def test_the_bundle_is_written_once(folder: Path, tmp_path: Path) -> None:
    path, out = write_official(folder), tmp_path / "bundle"
    first = write_bundle_once(path, out)
    written = {p.name: p.stat().st_mtime_ns for p in out.iterdir()}
    assert set(written) == {"manifest.json", "weights.safetensors"}
    again = write_bundle_once(path, out)
    assert {p.name: p.stat().st_mtime_ns for p in out.iterdir()} == written
    assert torch.equal(first.table, again.table)
    assert again.provenance == load_official(path).provenance
    path.unlink()
    assert write_bundle_once(path, out).sha256 == first.sha256  # the 1.8 GB are not needed again


def test_nothing_is_written_over(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    write_bundle_once(write_official(folder), out)
    other = write_official(tmp_path / "arc_v2_public", step=3, rows=30)
    with pytest.raises(BundleError, match="another bundle"):
        write_bundle_once(other, out)
    full = tmp_path / "full"
    full.mkdir()
    (full / "notes").write_text("mine")
    with pytest.raises(BundleError, match="is no bundle"):
        write_bundle_once(other, full)
    assert [p.name for p in full.iterdir()] == ["notes"]


@pytest.mark.thorough
def test_the_command_keeps_a_sample_or_with_their_names_all_rows_of_the_table(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out, whole = write_official(folder, rows=300), tmp_path / "bundle", tmp_path / "whole"
    assert etrm_command(["bundle", str(path), str(out)]) == 0
    assert "256 table rows" in capsys.readouterr().out
    names = tmp_path / "identifiers.json"
    names.write_text(json.dumps(["<blank>", *(f"task{i}" for i in range(1, 300))]))
    assert etrm_command(["bundle", str(path), str(whole), "--identifiers", str(names)]) == 0
    kept, table = load_bundle(str(whole)), map_state(path)[open_official(path).table[0]].float()  # type: ignore[index]
    assert all(torch.equal(kept.table[kept.row_of(f"task{i}")], table[i]) for i in range(1, 300))
    assert "299 table rows" in capsys.readouterr().out
    assert etrm_command(["bundle", str(path), str(out), "--identifiers", str(names)]) == 2
    assert "256 table rows (row_1, …), not the 299 asked for (task1, …)" in capsys.readouterr().err


def test_a_bundle_of_another_path_or_structure_is_not_taken_for_this_one(folder: Path, tmp_path: Path) -> None:
    path, out = write_official(folder), tmp_path / "bundle"
    write_bundle_once(path, out)
    with pytest.raises(BundleError, match="another bundle"):
        write_bundle_once(tmp_path / "nowhere" / "step_1", out)
    config = folder / "all_config.yaml"
    config.write_text(config.read_text().replace("L_cycles: 2", "L_cycles: 3"))
    with pytest.raises(BundleError, match=r"said otherwise \(l_cycles"):
        write_bundle_once(path, out)


@pytest.mark.parametrize(("value", "told"), [(float("nan"), "not finite"), (None, "expected a plain tensor")])
def test_a_table_that_no_encoder_can_match_is_refused_and_leaves_nothing(
    folder: Path, tmp_path: Path, value: float | None, told: str
) -> None:
    path = write_official(folder)
    state = official_state(TINY, 400)
    name = next(n for n in state if "puzzle_emb" in n)
    state[name] = state[name].to_sparse() if value is None else torch.full_like(state[name], value)
    torch.save(state, path)
    with pytest.raises(CheckpointError, match=told):
        write_bundle_once(path, tmp_path / "bundle")
    assert sorted(p.name for p in tmp_path.iterdir()) == [folder.name]


def test_a_place_that_cannot_be_written_is_one_sentence(folder: Path, tmp_path: Path) -> None:
    path = write_official(folder)
    (tmp_path / "afile").write_text("mine")
    with pytest.raises(BundleError, match="was not written"):
        write_bundle_once(path, tmp_path / "afile" / "bundle")
    assert (tmp_path / "afile").read_text() == "mine"


@pytest.mark.thorough
def test_resolve_bundle_takes_a_name_a_folder_and_a_file(folder: Path, tmp_path: Path) -> None:
    path = write_official(folder)
    write_bundle_once(path, tmp_path / "bundle")
    assert resolve_bundle(str(path)).structure == TINY
    assert resolve_bundle(str(tmp_path / "bundle")).structure == TINY
    assert resolve_bundle("micro").provenance.benchmark == "micro-2"
    with pytest.raises(BundleError, match=r"give the file in it: bundle=.*/step_518071"):
        resolve_bundle(str(folder))
    with pytest.raises(BundleError, match="no decoder bundle 'mikro'"):
        resolve_bundle("mikro")
    with pytest.raises(CheckpointError, match="its folder has step_518071"):
        resolve_bundle(str(folder / "step_518070"))
