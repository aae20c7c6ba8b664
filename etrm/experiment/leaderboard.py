"""Every encoder x objective at an equal number of updates, screened on validation tasks; over seeds the best ones and
the config's own.

`python -m etrm.experiment.leaderboard --config-name cfg_calibration [--updates N] [--encoders a,b]
[--objectives lm,lm+table] [--seeds N] [--final-updates N]` writes a page and a plot (leaderboard_page.py). A finished
cell is kept as JSON under runs/leaderboard and read again if its config and its bundle are the same (the code is not
part of the key: delete the folder after changing an encoder). The locked test is never asked.

Sizes: hidden size and heads are the config's for all; depths are the published ones for the reference's encoders
(SIZES), the config's for the default.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from etrm.config.compose import config_hash, load
from etrm.config.schema import Objective, RunConfig
from etrm.data.episodes import RuleSource, derangement
from etrm.data.families import BENCHMARKS, benchmark
from etrm.errors import ConfigError, EtrmError, NonFiniteError
from etrm.evaluation.controls import answer, constant_context, contexts_of, copy_input, own_rows
from etrm.experiment.arms import ORACLE_PAIRS, Arm, build_arm
from etrm.experiment.leaderboard_page import Line, Row, page, plot
from etrm.experiment.oracles import measure_oracles
from etrm.experiment.outcome import own_answers
from etrm.models.bundle import Bundle, load_bundle
from etrm.models.encoders import REGISTRY, build_encoder
from etrm.models.etrm import ETRM
from etrm.training.loop import encoder_state, fit
from etrm.training.run import build_head

BEST = 4
TABLE_SHARE = 0.3  # of the updates in which the table teaches, under lm+table
WARMUP_SHARE = 0.1
SIZES = {  # encoder -> (layers, set_layers) as published, where the config's are another encoder's
    "standard": (2, 1),
    "hybrid_standard": (4, 1),
    "hybrid_variational": (4, 1),
    "lpn_standard": (8, 1),
    "lpn_variational": (6, 1),
    "recurrent_standard": (2, 1),
    "trm_style": (2, 2),
    "aligned": (2, 1),
}


@dataclass(frozen=True)
class Cell:
    """One training: which encoder, objective and seed."""

    encoder: str
    objective: Objective
    seed: int

    @property
    def name(self) -> str:
        """Its file's name, without suffix."""
        return f"{self.encoder}-{self.objective.replace('+', '_')}-{self.seed}"


def known_encoders(bundle: Bundle, config: RunConfig) -> tuple[str, ...]:
    """All encoders of the registry."""
    build_encoder(config.encoder, bundle.spec())  # the registry fills on first use
    return tuple(sorted(REGISTRY))


def cell_config(config: RunConfig, cell: Cell, updates: int) -> RunConfig:
    """The cell's own config: its encoder at its depth, its objective, the seed, and `updates` with a tenth warm-up."""
    layers, set_layers = SIZES.get(cell.encoder, (config.encoder.layers, config.encoder.set_layers))
    share = TABLE_SHARE if cell.objective == "lm+table" else 0.0
    return replace(
        config,
        encoder=replace(config.encoder, name=cell.encoder, layers=layers, set_layers=set_layers),
        loss=replace(config.loss, objective=cell.objective, table_share=share),
        budget=replace(config.budget, updates=updates, epochs=0, checkpoint_every=0),
        optim=replace(config.optim, warmup_updates=round(WARMUP_SHARE * updates)),
        system=replace(config.system, seed=cell.seed),
    )


def train_cell(config: RunConfig, bundle: Bundle, arm: Arm, folder: Path) -> Row:
    """Train and evaluate one cell on validation and seen tasks; a loss that is not finite is a row that says so."""
    head = build_head(config, bundle, torch.device("cpu"))
    model = head.model
    assert isinstance(model, ETRM)
    assert isinstance(model.encoder, torch.nn.Module)
    state = encoder_state(config, head, len(arm.source.task_ids))
    if config.loss.objective == "lm+table":
        state.teacher = bundle.table
    head.train()
    head.decoder.eval()
    name = Cell(config.encoder.name, config.loss.objective, config.system.seed).name
    began, failed = time.monotonic(), ""
    rng = np.random.default_rng(config.system.seed)
    try:
        fit(config, state, arm.source, rng, torch.device("cpu"), folder / f"{name}.jsonl")
    except NonFiniteError as error:
        failed = str(error)
    seconds = time.monotonic() - began
    size, kind, asked = config.evaluation.batch_size, config.loss.cross_entropy, arm.validation.batch
    own, seen = own_answers(config, model, arm.validation), own_answers(config, model, arm.probe)
    lender = derangement(asked.task, np.random.default_rng(config.system.seed))
    wrong = answer(model.decoder, asked, contexts_of(model, asked.with_demos_of(lender), size), size, kind)
    return Row(
        encoder=config.encoder.name,
        objective=config.loss.objective,
        seed=config.system.seed,
        parameters=sum(p.numel() for p in model.encoder.parameters()),
        updates=state.step,
        seconds=seconds,
        validation=(int(own.exact.sum()), len(own.exact)),
        validation_loss=float(own.loss.mean()),
        mismatched=(int(wrong.exact.sum()), len(wrong.exact)),
        seen=(int(seen.exact.sum()), len(seen.exact)),
        failed=failed,
    )


def kept(path: Path, key: str, make: Callable[[], Any]) -> Any:
    """What `make` gives, from `path` if it was made before under the same key; written in one step."""
    if path.is_file():
        try:
            found = json.loads(path.read_text())
        except ValueError as error:
            raise ConfigError(f"{path} is no JSON ({error}); delete it and run the same command again") from error
        if found.get("key") == key:
            return found["value"]
    value = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(json.dumps({"key": key, "value": value}, indent=1) + "\n")
    os.replace(partial, path)
    return value


def measure_lines(config: RunConfig, bundle: Bundle, arm: Arm) -> list[Line]:
    """Positive control, oracles on validation rules, and the nulls that need no encoder."""
    size, kind, asked = config.evaluation.batch_size, config.loss.cross_entropy, arm.validation.batch
    lines = []
    known = arm.probe.batch
    if bool((known.row >= 0).all()):
        right = answer(bundle.decoder, known, own_rows(bundle.decoder, bundle.table, known), size, kind).exact
        lines.append(Line("positive control (own rows, seen)", int(right.sum()), len(right)))
    if config.data.benchmark in BENCHMARKS:
        b = benchmark(config.data.benchmark)
        rules = RuleSource(b.split().validation, b)
        draws = [np.random.default_rng([salt, config.system.seed]) for salt in (15, 16, 17)]
        queries, many, few = (rules.each(n, r) for n, r in zip((8, ORACLE_PAIRS, b.demos), draws, strict=True))
        here = replace(arm, rungs=(arm.validation,), oracle_many=(many, queries), oracle_demos=(few, queries))
        for name, found in zip(
            ("oracle, 32 pairs", "oracle, demonstrations"), measure_oracles(here, bundle, config), strict=True
        ):
            if found is not None:
                lines.append(Line(name, found.score.k, found.score.n))
    spec = bundle.spec()
    model = ETRM(build_encoder(config.encoder, spec), bundle.decoder, spec)
    value, _ = constant_context(config, model, arm.source, config.evaluation.constant_updates)
    flat = answer(bundle.decoder, asked, value.expand(len(asked), -1, -1), size, kind).exact
    lines.append(Line("null: constant context", int(flat.sum()), len(flat)))
    same = copy_input(asked)
    lines.append(Line("null: input copied", int(same.sum()), len(same)))
    return lines


def finalists(ranked: Sequence[Row], config: RunConfig) -> list[Row]:
    """The best BEST, and the config's own encoder and objective wherever they rank, if they were screened."""
    own = (config.encoder.name, config.loss.objective)
    return [row for place, row in enumerate(ranked) if place < BEST or (row.encoder, row.objective) == own]


def leaderboard(
    config: RunConfig,
    budgets: tuple[int, int],
    encoders: Sequence[str],
    objectives: Sequence[Objective],
    seeds: int,
    folder: Path,
    say: Callable[[str], None],
) -> tuple[list[Row], list[Row], list[Line]]:
    """Screening rows, rows of the finalists over `seeds` seeds (seed 0 included), and the lines of the plot. `budgets`
    are the updates of a screened and of a final cell.
    """
    bundle = load_bundle(config.bundle)
    known = known_encoders(bundle, config)
    if unknown := sorted(set(encoders) - set(known)):
        raise ConfigError(f"--encoders names {', '.join(unknown)}; there are {', '.join(known)}")
    arm = build_arm(config, bundle)

    def row_of(cell: Cell, updates: int) -> Row:
        own, place = cell_config(config, cell, updates), folder / str(updates)
        key = f"{config_hash(own)} {bundle.sha256}"
        found = kept(place / f"{cell.name}.json", key, lambda: asdict(train_cell(own, bundle, arm, place)))
        row = Row.of(found)
        say(f"{cell.name}: validation {row.validation[0]} of {row.validation[1]}, {row.seconds:.0f} s")
        return row

    screened = [row_of(Cell(e, o, 0), budgets[0]) for o in objectives for e in (encoders or known)]
    ranked = sorted(screened, key=Row.order)
    final = []
    if seeds > 1:
        objective_of: dict[str, Objective] = {o: o for o in objectives}
        best = finalists(ranked, config)
        final = [row_of(Cell(r.encoder, objective_of[r.objective], s), budgets[1]) for r in best for s in range(seeds)]
    key = f"{config_hash(config)} {bundle.sha256}"
    lines = kept(folder / "lines.json", key, lambda: [asdict(line) for line in measure_lines(config, bundle, arm)])
    return ranked, final, [Line(**line) for line in lines]


def main(arguments: list[str] | None = None) -> int:
    """The command of the file's top. Exit status: 0 done, 1 a reason on stderr, 2 wrong usage."""
    parser = argparse.ArgumentParser(prog="python -m etrm.experiment.leaderboard", description=__doc__)
    parser.add_argument("--config-name", required=True, help="a file of config/, without .yaml")
    parser.add_argument("--updates", type=int, help="of every cell; default: the config's")
    parser.add_argument("--final-updates", type=int, help="of the finalists; default: as --updates")
    parser.add_argument("--encoders", default="", help="names, comma between; default: all")
    parser.add_argument("--objectives", default="lm", help="lm, lm+table; comma between")
    parser.add_argument("--seeds", type=int, default=1, help=f"of the best {BEST} and the default; 1: screening only")
    parser.add_argument("--runs", type=Path, default=Path("runs/leaderboard"), help="where finished cells are kept")
    parser.add_argument("--out", type=Path, default=Path("docs/experiments"), help="folder of the page and the plot")
    parser.add_argument("overrides", nargs="*", help="key=value")
    options = parser.parse_intermixed_args(arguments)
    asked = options.objectives.split(",")
    objectives: list[Objective] = [o for o in get_args(Objective) if o in asked]
    if not set(asked) <= set(objectives):
        parser.error(f"--objectives {options.objectives}: expected lm, lm+table or both")
    if any(count is not None and count < 1 for count in (options.seeds, options.updates, options.final_updates)):
        parser.error("--seeds, --updates and --final-updates: expected at least 1")
    encoders = [e for e in options.encoders.split(",") if e]
    try:
        config = load(RunConfig, options.config_name, options.overrides)
        updates = options.updates or config.budget.updates
        budgets = updates, options.final_updates or updates
        folder = options.runs / options.config_name
        found = leaderboard(config, budgets, encoders, objectives, options.seeds, folder, say=print)
    except EtrmError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    words = sys.argv[1:] if arguments is None else arguments
    command = " ".join(("python -m etrm.experiment.leaderboard", *words))
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "leaderboard.svg").write_text(plot(found[0], found[1], found[2]))
    text = page(config.data.benchmark, command, date.today().isoformat(), *found)
    (options.out / "leaderboard.md").write_text(text)
    print(f"wrote {options.out / 'leaderboard.md'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
