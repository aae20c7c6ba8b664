"""Plants in the decoder: loaded otherwise than trained, moved, or optimised. Right: INVALID."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from etrm.config.schema import RunConfig
from etrm.faults.bank import Bench, everywhere, fault
from etrm.models.bundle import ASSETS, Bundle, load_bundle
from etrm.models.trm import Structure, TRMDecoder
from etrm.training.loop import encoder_state
from etrm.training.update import LossHead, TrainState


def rebuilt(bundle: Bundle, structure: Structure) -> Bundle:
    """The bundle's weights in a decoder of another structure, which the bundle then claims as well."""
    decoder = TRMDecoder(structure)
    decoder.load_state_dict(bundle.decoder.state_dict())
    decoder.requires_grad_(False).eval()
    return replace(bundle, structure=structure, decoder=decoder)


def restructured(id: str, happened: str, catalogue: int | None, **changes: Any) -> None:
    """Enter a fault: right weights, another structure."""

    @fault(
        id,
        "decoder",
        happened,
        verdict="INVALID",
        check="golden_logits|structure",
        catalogue=catalogue,
        naive="C, encoder too weak",
    )
    def plant(bench: Bench) -> Iterator[None]:
        values = {k: v(bench.bundle.structure) if callable(v) else v for k, v in changes.items()}
        bench.bundle = rebuilt(bench.bundle, replace(bench.bundle.structure, **values))
        yield


restructured(
    "two-more-l-cycles",
    "trained with L_cycles 4, run with 6; weights alone were verified",
    11,
    l_cycles=lambda s: s.l_cycles + 2,
)
restructured("one-h-cycle-less", "H_cycles is not in the state dict either", 11, h_cycles=lambda s: s.h_cycles - 1)
restructured("other-precision", "a decoder trained in fp32 run in bf16", None, forward_dtype="bfloat16")
restructured("other-norm-epsilon", "a default of another framework", None, rms_norm_eps=0.1)


def weights(id: str, happened: str, catalogue: int | None, change: Callable[[TRMDecoder], object], check: str) -> None:
    """Enter a fault: the decoder's tensors are changed before the run."""

    @fault(id, "decoder", happened, verdict="INVALID", check=check, catalogue=catalogue, naive="C, encoder too weak")
    def plant(bench: Bench) -> Iterator[None]:
        with torch.no_grad():
            change(bench.bundle.decoder)
        yield


weights(
    "head-left-random",
    "a prefix did not match, and a head kept its random start",
    19,
    lambda d: d.lm_head.weight.normal_(0, 0.1),
    "golden_logits",
)
weights(
    "start-state-lost",
    "the start states are buffers and were not in the file",
    19,
    lambda d: d.H_init.zero_(),
    "golden_logits",
)
weights(
    "context-path-zeroed",
    "the decoder cannot be steered at all",
    6,
    lambda d: setattr(d, "embed", lambda i, c, whole=d.embed: whole(i, c * 0)),
    "golden_logits",
)


@fault(
    "table-reset-to-its-mean",
    "decoder",
    "a table of another size was replaced by its mean row",
    verdict="INVALID",
    check="decoder_competent",
    catalogue=19,
    naive="C",
)
def mean_table(bench: Bench) -> Iterator[None]:
    """Every task gets the same row."""
    bench.bundle = replace(
        bench.bundle, table=bench.bundle.table.mean(dim=0, keepdim=True).expand_as(bench.bundle.table)
    )
    yield


def _file(id: str, happened: str, catalogue: int | None, change: Callable[[Path], object]) -> None:
    """Enter a fault: a bundle folder is altered and loaded by path."""

    @fault(id, "decoder", happened, verdict="INVALID", check="golden_logits", catalogue=catalogue, naive="C")
    def plant(bench: Bench) -> Iterator[None]:
        folder = bench.folder / "bundle"
        shutil.copytree(ASSETS / bench.bundle.name, folder)
        change(folder)
        with everywhere(load_bundle, lambda _: load_bundle(str(folder))):
            bench.bundle = None  # the run loads it itself
            yield


def _flip(folder: Path) -> None:
    raw = bytearray((folder / "weights.safetensors").read_bytes())
    raw[len(raw) // 2] ^= 1
    (folder / "weights.safetensors").write_bytes(raw)


def _manifest(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        manifest = json.loads((folder / "manifest.json").read_text())
        change(manifest)
        (folder / "manifest.json").write_text(json.dumps(manifest))

    return edit


_file("one-bit-flipped", "a file that a download cut or a disk changed", None, _flip)
_file(
    "manifest-of-other-cycles",
    "structure edited beside the right weights",
    11,
    _manifest(lambda m: m["structure"].update(l_cycles=m["structure"]["l_cycles"] + 2)),
)
_file(
    "provenance-edited",
    "task ids removed from the record of what the decoder knows",
    13,
    _manifest(lambda m: m["provenance"].update(task_ids=[])),
)
_file(
    "weights-missing",
    "a folder without its weights, and a default in their place",
    19,
    lambda folder: (folder / "weights.safetensors").unlink(),
)


@fault(
    "structure-set-after-loading",
    "decoder",
    "a config layer set L_cycles on the loaded decoder",
    verdict="INVALID",
    check="structure",
    catalogue=44,
    naive="C, encoder too weak",
)
def structure_set_later(bench: Bench) -> Iterator[None]:
    """The decoder in use has two L cycles more than its bundle."""

    def edit(head: LossHead) -> None:
        s = head.decoder.structure
        head.decoder.structure = replace(s, l_cycles=s.l_cycles + 2)

    bench.edits.append(edit)
    yield


@fault(
    "decoder-drifts",
    "decoder",
    "a millionth a step hides below a tolerance of 1e-5",
    verdict="INVALID",
    check="decoder_unchanged",
    stage="short run",
    catalogue=21,
    naive="A",
)
def drift(bench: Bench) -> Iterator[None]:
    """Each update moves one weight a little."""

    def edit(head: LossHead) -> None:
        whole: Any = head.model.context
        weight = head.decoder.lm_head.weight

        def context(episodes: object) -> object:
            weight.data.add_(1e-7)
            return whole(episodes)

        head.model.context = context  # type: ignore[assignment]

    bench.edits.append(edit)
    yield


@fault(
    "start-state-moves",
    "decoder",
    "buffers are no parameters, and no freeze holds them",
    verdict="INVALID",
    check="decoder_unchanged",
    stage="short run",
    catalogue=20,
    naive="A",
)
def buffer_moves(bench: Bench) -> Iterator[None]:
    """A buffer is averaged along."""

    def edit(head: LossHead) -> None:
        whole: Any = head.model.context
        buffer = head.decoder.H_init

        def context(episodes: object) -> object:
            buffer.mul_(1 - 1e-6)
            return whole(episodes)

        head.model.context = context  # type: ignore[assignment]

    bench.edits.append(edit)
    yield


def _held(id: str, happened: str, catalogue: int, trainable: bool, check: str) -> None:
    @fault(
        id, "decoder", happened, verdict="INVALID", check=check, stage="first updates", catalogue=catalogue, naive="A"
    )
    def plant(bench: Bench) -> Iterator[None]:
        def stand_in(config: RunConfig, model: LossHead, tasks: int) -> TrainState:
            state = encoder_state(config, model, tasks)
            model.decoder.requires_grad_(trainable)
            optimizer, _ = state.optimizers["encoder"]
            optimizer.add_param_group({"params": list(model.decoder.parameters())})
            return state

        with everywhere(encoder_state, stand_in):
            yield


_held(
    "decoder-never-frozen",
    "the freeze matched no name, and its count was not looked at",
    20,
    True,
    "decoder_not_optimised",
)
_held("decay-on-frozen-weights", "decoupled decay moves what has no gradient", 34, False, "optimiser_complete")
