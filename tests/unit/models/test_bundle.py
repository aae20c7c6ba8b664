"""Decoder bundles: a round trip, and one refusal for each way in which a bundle can be damaged.

Legend: R table rows, S canvas cells, T context tokens, D hidden.
"""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from etrm.errors import BundleError
from etrm.models import bundle as bundles
from etrm.models.bundle import Provenance, context_statistics, load_bundle, replace_bundle, save_bundle
from etrm.models.trm import Structure, TRMDecoder, table_context

pytestmark = pytest.mark.fast

STRUCTURE = Structure(12, 9, 2, 16, 2, 4.0, 1, 2, 2, "learned", False, 10000.0, 1e-5, "float32", 2)
PROVENANCE = Provenance(
    "python pretrain_trm.py --config-name cfg_x",
    "micro-2",
    0,
    7,
    "ab",
    ("a", "b", "c"),
    ("a", "b", "c"),
    "2",
    {"k": 1, "n": 2},
)
INPUTS, ROWS = torch.arange(18).view(2, 9) % 12, torch.tensor([2, 0])


def saved(folder: Path, structure: Structure = STRUCTURE) -> tuple[TRMDecoder, Tensor]:
    torch.manual_seed(0)
    decoder, table = TRMDecoder(structure), torch.randn(3, 32)
    save_bundle(folder, decoder, table, PROVENANCE, INPUTS, ROWS)
    return decoder, table


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    saved(tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_round_trip_keeps_everything(tmp_path: Path, dtype: str) -> None:
    structure = replace(STRUCTURE, forward_dtype=dtype)
    decoder, table = saved(tmp_path / "tiny", structure)
    loaded = load_bundle(str(tmp_path / "tiny"))
    assert loaded.structure == structure and loaded.provenance == PROVENANCE and loaded.side == 3
    assert torch.equal(loaded.table, table)
    own = loaded.decoder.state_dict()
    assert all(torch.equal(own[n], t) and own[n].dtype == t.dtype for n, t in decoder.state_dict().items())
    assert [loaded.row_of(n) for n in ("a", "c", "unknown")] == [0, 2, -1]
    spec = loaded.spec()
    assert (spec.seq_len, spec.vocab_size, spec.context_tokens, spec.hidden_size) == (9, 12, 2, 16)
    assert torch.equal(spec.context_mean, table.mean(dim=0).view(2, 16)) and spec.context_std.shape == (2,)


def test_a_loaded_decoder_is_frozen_and_in_eval_mode(folder: Path) -> None:
    decoder = load_bundle(str(folder)).decoder
    assert not decoder.training and not any(p.requires_grad for p in decoder.parameters())


def test_the_statistics_are_those_of_the_table_and_a_silent_token_has_no_deviation() -> None:
    table = torch.randn(50, 16) * 3 + 1  # fills the first of two tokens
    mean, std = context_statistics(table, STRUCTURE)
    assert torch.allclose(mean[0], table.mean(dim=0)) and not mean[1].any()
    assert std[0].item() == pytest.approx((table - table.mean(dim=0)).square().mean().sqrt().item()) and std[1] == 0


# ---- damage -----------------------------------------------------------------------------------------------------


def rewrite(folder: Path, edit: Callable[[dict[str, Tensor]], None]) -> None:
    """Edit the tensors and put the new sha256 into the manifest: damage that a hash alone does not show."""
    weights = folder / "weights.safetensors"
    with safe_open(weights, "pt") as file:
        meta, tensors = file.metadata(), {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    edit(tensors)
    save_file(tensors, weights, meta)
    manifest(folder, lambda m: m.update(weights_sha256=bundles.hashlib.sha256(weights.read_bytes()).hexdigest()))


def manifest(folder: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "manifest.json"
    data = json.loads(path.read_text())
    edit(data)
    path.write_text(json.dumps(data))


def flip_a_byte(folder: Path) -> None:
    path = folder / "weights.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(bytes(data))


def add(tensors: dict[str, Tensor], name: str, amount: float) -> None:
    tensors[name] = tensors[name] + amount


LM = "decoder.lm_head.weight"
DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing tensor": (lambda f: rewrite(f, lambda t: t.pop(LM)), "missing lm_head.weight"),
    "extra tensor": (lambda f: rewrite(f, lambda t: t.update({"decoder.x": torch.ones(1)})), "unexpected x"),
    "extra part": (lambda f: rewrite(f, lambda t: t.update(rest=torch.ones(1))), r"unknown \['rest'\]"),
    "missing part": (lambda f: rewrite(f, lambda t: t.pop("golden.halt")), r"lacks \['golden.halt'\]"),
    "other shape": (
        lambda f: rewrite(f, lambda t: t.update({LM: torch.ones(12, 17)})),
        r"lm_head.weight is \(12, 17\)",
    ),
    "other weights": (lambda f: rewrite(f, lambda t: add(t, LM, 0.01)), "golden.logits"),
    "other halt head": (lambda f: rewrite(f, lambda t: add(t, "decoder.q_head.bias", 0.01)), "golden.halt"),
    "a weight that is NaN": (lambda f: rewrite(f, lambda t: add(t, LM, torch.nan)), "is not finite"),
    "other table": (lambda f: rewrite(f, lambda t: add(t, "table", 0.01)), "context_mean does not describe"),
    "wider table": (lambda f: rewrite(f, lambda t: add(t, "context_std", 0.01)), "context_std does not describe"),
    "flipped byte": (flip_a_byte, "sha256"),
    "truncated weights": (lambda f: (f / "weights.safetensors").write_bytes(b"\x08"), "sha256"),
    "no weights": (lambda f: (f / "weights.safetensors").unlink(), "weights.safetensors is missing"),
    "other hash": (lambda f: manifest(f, lambda m: m.update(weights_sha256="0" * 64)), "sha256"),
    "more L cycles": (lambda f: manifest(f, lambda m: m["structure"].update(l_cycles=4)), "golden.logits"),
    "fewer H cycles": (lambda f: manifest(f, lambda m: m["structure"].update(h_cycles=1)), "golden.logits"),
    "other heads": (lambda f: manifest(f, lambda m: m["structure"].update(num_heads=4)), "golden.logits"),
    "other dtype": (lambda f: manifest(f, lambda m: m["structure"].update(forward_dtype="float16")), "forward_dtype"),
    "other positions": (lambda f: manifest(f, lambda m: m["structure"].update(pos_encodings="none")), "embed_pos"),
    "more ACT steps": (
        lambda f: manifest(f, lambda m: m["structure"].update(halt_max_steps=9)),
        "structure or provenance",
    ),
    "no cycles": (lambda f: manifest(f, lambda m: m["structure"].update(l_cycles=0)), "l_cycles"),
    "text for a size": (lambda f: manifest(f, lambda m: m["structure"].update(layers="1")), "layers"),
    "a field too few": (lambda f: manifest(f, lambda m: m["structure"].pop("layers")), r"lacks \['layers'\]"),
    "a field too many": (lambda f: manifest(f, lambda m: m["structure"].update(x=1)), r"unknown \['x'\]"),
    "no structure": (lambda f: manifest(f, lambda m: m.pop("structure")), "structure"),
    "a list": (lambda f: (f / "manifest.json").write_text("[]"), "format"),
    "rows lost": (lambda f: manifest(f, lambda m: m["provenance"]["row_names"].pop()), "3 table rows but 2 row names"),
    "row named twice": (lambda f: manifest(f, lambda m: m["provenance"].update(row_names=["a", "b", "a"])), "twice"),
    "rows renamed": (lambda f: manifest(f, lambda m: m["provenance"].update(row_names=["a", "c", "b"])), "provenance"),
    "rows no list": (lambda f: manifest(f, lambda m: m["provenance"].update(row_names=None)), "row_names"),
    "tasks forgotten": (
        lambda f: manifest(f, lambda m: m["provenance"].update(task_ids=[])),
        "structure or provenance",
    ),
    "wide tolerance": (lambda f: manifest(f, lambda m: m.update(golden_tolerance=1e9)), "golden_tolerance"),
    "text tolerance": (lambda f: manifest(f, lambda m: m.update(golden_tolerance="x")), "golden_tolerance"),
    "other format": (lambda f: manifest(f, lambda m: m.update(format=2)), "format 1"),
    "truncated manifest": (lambda f: (f / "manifest.json").write_text('{"format": 1,'), "manifest.json cannot be read"),
    "binary manifest": (lambda f: (f / "manifest.json").write_bytes(b"\xff\xfe\x00"), "manifest.json cannot be read"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_bundle_is_refused_by_a_message_that_names_the_damage(folder: Path, what: str) -> None:
    damage, message = DAMAGE[what]
    load_bundle(str(folder))
    damage(folder)
    with pytest.raises(BundleError, match=message):
        load_bundle(str(folder))


def test_a_decoder_that_computes_something_else_is_refused_although_its_files_are_whole(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the hashes cannot see: this code is not the code that trained the decoder."""
    monkeypatch.setattr(
        "etrm.models.layers.rms_norm", lambda x, eps: x / (x.square().mean(dim=-1, keepdim=True) + 0.1).sqrt()
    )
    with pytest.raises(BundleError, match=r"golden.*compare with: python pretrain_trm"):
        load_bundle(str(folder))


def test_golden_rows_tell_the_rows_of_the_table_apart(folder: Path) -> None:
    """The golden pass must use the stored rows: any other pairing of queries and rows is another function."""
    loaded = load_bundle(str(folder))
    right, _ = bundles.golden_pass(loaded.decoder, INPUTS, table_context(loaded.table[ROWS], STRUCTURE))
    wrong, _ = bundles.golden_pass(loaded.decoder, INPUTS, table_context(loaded.table[ROWS.flip(0)], STRUCTURE))
    assert (right - wrong).abs().max() > bundles.GOLDEN_TOLERANCE["float32"]


def test_an_unknown_name_lists_the_embedded_bundles() -> None:
    with pytest.raises(BundleError, match=r"no decoder bundle 'absent'.*micro") as caught:
        load_bundle("absent")
    assert all(name in str(caught.value) for name in bundles.available())


@pytest.mark.parametrize("name", bundles.available())
def test_every_embedded_bundle_loads(name: str) -> None:
    loaded = load_bundle(name)
    assert loaded.provenance.recipe.startswith("python pretrain_trm.py --config-name ")
    assert len(loaded.provenance.row_names) == len(loaded.table)


def test_a_bundle_that_cannot_be_put_in_its_place_leaves_the_one_before(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, real = load_bundle(str(folder)), os.replace
    parts = before.decoder, before.table * 2, PROVENANCE, INPUTS, ROWS

    def full(source: Path, target: Path) -> None:
        if Path(source).name.endswith(".partial"):
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(BundleError, match="was not written"):
        replace_bundle(folder, *parts)
    assert load_bundle(str(folder)).sha256 == before.sha256
    monkeypatch.undo()
    after = replace_bundle(folder, *parts)
    assert after.name == str(folder) and torch.equal(after.table, before.table * 2)
    assert after.sha256 == load_bundle(str(folder)).sha256 != before.sha256
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]
