"""Pretraining of a decoder with its own puzzle table (TRM's protocol), and its export as a bundle.

Every row belongs to one augmented task; the context an encoder must later supply is what the row has learned. The
ceiling that goes into the manifest is the decoder's exact rate with its own rows on fresh queries (rules) or on the
held-out test queries of the tasks whose demonstrations it was trained on (ARC).
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from etrm.config.compose import to_dict
from etrm.config.schema import ArchConfig, PretrainConfig
from etrm.data.arc import Task
from etrm.data.arc_agi import ARC_AGI
from etrm.data.arc_split import ARC_BENCHMARKS, arc_benchmark, split_arc, task_augmentations, taught
from etrm.data.arc_table import table_source
from etrm.data.episodes import ArcSource, Batch, RuleSource, Source
from etrm.data.families import BENCHMARKS, benchmark
from etrm.data.grids import MAX_SIDE, VOCAB
from etrm.errors import ConfigError
from etrm.models.bundle import Provenance, check_out, replace_bundle
from etrm.models.etrm import Episodes, TableTRM, decode
from etrm.models.trm import Structure, TRMDecoder
from etrm.training.checkpoint import checkpoint_folder
from etrm.training.distributed import start, told_ranks
from etrm.training.durable import alone_in
from etrm.training.loop import Report, evaluation_points, fit, pretrain_state
from etrm.training.run import check_ranks, choose_device, keep_config
from etrm.training.start import KEY, start_of, take_over
from etrm.training.update import LossHead, TrainState

GOLDEN = 4
CONFIG_FILE = "config.yaml"
CEILING_QUERIES = 2048


@dataclass(frozen=True, eq=False)
class PretrainingTask:
    """What a decoder is pretrained on: a source, the names of its rows, and the queries of its ceiling."""

    source: Source
    row_names: tuple[str, ...]
    ceiling: Batch


def pretraining_task(config: PretrainConfig) -> PretrainingTask:
    """Source, rows and ceiling queries for the config's benchmark; ConfigError for fields that the benchmark does not
    have.
    """
    data = config.data
    if config.table.width > (most := config.arch.context_tokens * config.arch.hidden_size):
        raise ConfigError(f"table.width is {config.table.width}, more than the context's {most}; set table.width=0")
    if config.loss.objective != "lm" or config.loss.table_share:
        raise ConfigError("a decoder is pretrained by its own loss: set loss.objective=lm loss.table_share=0")
    if data.benchmark in ARC_BENCHMARKS:
        b = arc_benchmark(data.benchmark)
        tasks = _first(split_arc(b).decoder, data.train_tasks)
        augmentations = [
            task_augmentations(t, data.augmentations, data.colour_augmentation, config.system.seed) for t in tasks
        ]
        names = tuple(a.name(t.id) for t, listed in zip(tasks, augmentations, strict=True) for a in listed)
        rows = {n: i for i, n in enumerate(names)}

        def source(drawn: Sequence[Task], own: Sequence[int] = (), own_asked: float = 0.0) -> ArcSource:
            one_out = data.leave_one_out
            return ArcSource(drawn, augmentations, b.side, data.max_demos, rows.__getitem__, one_out, own, own_asked)

        asked = source(tasks)
        own = [len(t.demos) for t in tasks] if b.own_asked else []
        return PretrainingTask(source(taught(b, tasks), own, b.own_asked), names, asked.encode(asked.queries()))
    if data.benchmark in ARC_AGI:
        if data.max_demos != 1 or data.leave_one_out:
            raise ConfigError(
                "TRM's protocol shows no demonstrations: set data.max_demos=1 and data.leave_one_out=false"
            )
        rows_source = table_source(
            data.benchmark, data.train_tasks, data.augmentations, data.colour_augmentation, MAX_SIDE, config.system.seed
        )
        return PretrainingTask(rows_source, rows_source.row_names, rows_source.held_out())
    if data.benchmark not in BENCHMARKS:
        there = ", ".join((*BENCHMARKS, *ARC_BENCHMARKS, *ARC_AGI))
        raise ConfigError(f"data.benchmark is {data.benchmark!r}; there are {there}")
    if data.augmentations != 1 or data.colour_augmentation or data.leave_one_out:
        raise ConfigError(
            "procedural rules have no augmentation: data.augmentations=1, colour_augmentation and leave_one_out false"
        )
    rules = benchmark(data.benchmark)
    if data.max_demos != rules.demos:
        raise ConfigError(
            f"data.max_demos is {data.max_demos}, but {rules.version} is fixed at {rules.demos} demonstrations"
        )
    members = _first(rules.split().train, data.train_tasks)
    rule_source = RuleSource(members, rules, range(len(members)))
    ceiling = rule_source.sample(CEILING_QUERIES, np.random.default_rng(10_000 + config.system.seed))
    return PretrainingTask(rule_source, rule_source.task_ids, ceiling)


def _first(tasks: tuple[Any, ...], count: int) -> tuple[Any, ...]:
    if count > len(tasks):
        raise ConfigError(f"data.train_tasks is {count}, but there are {len(tasks)}; 0 takes all")
    return tasks[: count or None]


def make_structure(arch: ArchConfig, side: int) -> Structure:
    """The config's architecture on a canvas of `side` x `side` cells."""
    return Structure(
        vocab_size=VOCAB,
        seq_len=side * side,
        context_tokens=arch.context_tokens,
        hidden_size=arch.hidden_size,
        num_heads=arch.num_heads,
        expansion=arch.expansion,
        layers=arch.layers,
        h_cycles=arch.h_cycles,
        l_cycles=arch.l_cycles,
        pos_encodings=arch.pos_encodings,
        mlp_t=arch.mlp_t,
        rope_theta=arch.rope_theta,
        rms_norm_eps=arch.rms_norm_eps,
        forward_dtype=arch.forward_dtype,
        halt_max_steps=arch.halt_max_steps,
    )


def exact_with_own_contexts(model: TableTRM, queries: Batch, device: torch.device, size: int = 256) -> np.ndarray:
    """Whether each query is answered exactly with the decoder's own table row; (N,) bool."""
    right = [np.zeros(0, dtype=bool)]  # a rank may have no query
    was_training = model.training
    model.eval()  # the rows themselves, without their training noise
    for part in queries.batches(size):
        episodes = Episodes.of(part, device)
        with torch.inference_mode():
            context = model.context(episodes).context
        tokens, _ = decode(model.decoder, episodes.inputs, context)
        right.append(((tokens == episodes.labels) | (episodes.labels < 0)).all(dim=1).cpu().numpy())
    model.train(was_training)
    return np.concatenate(right)


def data_hash(row_names: Sequence[str], queries: Batch) -> str:
    """sha256 over row names and ceiling queries: changes when tasks, augmentations or encodings do."""
    digest = hashlib.sha256("\n".join(row_names).encode())
    digest.update(queries.inputs.tobytes() + queries.labels.tobytes())
    return digest.hexdigest()


def pretrain(
    config: PretrainConfig,
    config_name: str,
    out: Path,
    checkpoints: Path,
    report: Report | None = None,
    say: Callable[[str], None] = print,
    stop_after: int | None = None,
) -> TrainState:
    """Train (or go on training) a decoder and write its bundle to `out` when the budget is spent; returns the final
    state. Under torchrun every rank calls it, they share the batch, and rank 0 writes and says.
    """
    _, size, local = told_ranks(os.environ)
    check_ranks(config.budget, size)
    if size > 1 and config.table.noise > 0:
        raise ConfigError(f"table.noise is {config.table.noise}, which {size} ranks would draw alike; set it to 0")
    device = choose_device(config.system.device, local)
    ranks = start(device)
    say = say if ranks.main else lambda text: None
    task = pretraining_task(config)
    folder = checkpoint_folder(checkpoints, config.project, config.run)
    first, origin = start_of(config.start, folder / CONFIG_FILE)
    recipe = f"python pretrain_trm.py --config-name {config_name}" + (f", from {origin}" if origin else "")
    described = data_hash(task.row_names, task.ceiling)
    ranks.by_main(lambda: check_out(out, recipe, described))
    torch.manual_seed(config.system.seed)
    structure = make_structure(config.arch, task.source.side)
    table = TableTRM(TRMDecoder(structure), len(task.row_names), config.table.noise, width=config.table.width)
    if first is not None:
        taken = take_over(first, table, config.data.benchmark, task.source.task_ids, task.row_names)
        say(f"starts from {origin}: {taken} of {len(task.row_names)} rows")
    model = LossHead(table, config.loss).to(device)
    state = pretrain_state(config, model, len(task.source.task_ids))
    table.generator = state.generator  # the one that checkpoints hold

    def exact() -> int:
        share = task.ceiling.take(np.arange(ranks.rank, len(task.ceiling), ranks.size))
        return int(ranks.total(torch.tensor(exact_with_own_contexts(table, share, device).sum(), device=device)))

    def measure(step: int) -> None:
        say(f"update {step}: {exact()} of {len(task.ceiling)} exact with its own contexts (raw weights)")

    points = dict.fromkeys(evaluation_points(state.total_steps, config.budget.evaluations), measure)
    rng = np.random.default_rng(config.system.seed)
    log = folder / "metrics.jsonl"
    told = report if ranks.main else None
    with ExitStack() as held:
        ranks.by_main(lambda: _hold(held, folder, config, origin))
        record = fit(config, state, task.source, rng, device, log, folder, points, told, stop_after, say, ranks)
    if record.executed_updates < record.planned_updates:
        return state
    if state.ema is not None:
        # The exported decoder is the averaged one; its raw twin stays in the checkpoint.
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.copy_(state.ema.shadow[name])
    right = exact()
    provenance = Provenance(
        recipe=recipe,
        benchmark=config.data.benchmark,
        seed=config.system.seed,
        updates=record.executed_updates,
        data_hash=described,
        task_ids=task.source.task_ids,
        row_names=task.row_names,
        torch=torch.__version__,
        ceiling={"k": right, "n": len(task.ceiling), "unvoted": True},
    )
    golden = task.ceiling.take(slice(0, GOLDEN))
    table.requires_grad_(False).to("cpu")
    inputs, rows = torch.from_numpy(golden.inputs), torch.from_numpy(golden.row)
    weights = table.puzzle_emb.weights.detach()

    def export() -> None:  # what it returned would be sent to every rank
        replace_bundle(out, table.decoder, weights, provenance, inputs, rows)

    ranks.by_main(export)
    say(f"wrote {out}: {right} of {len(task.ceiling)} exact with its own contexts")
    return state


def _hold(held: ExitStack, folder: Path, config: PretrainConfig, origin: str) -> None:
    held.enter_context(alone_in(folder))
    keep_config(folder, to_dict(config) | ({KEY: origin} if origin else {}), CONFIG_FILE)
