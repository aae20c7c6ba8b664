"""Verdicts over seeds: `python -m etrm.experiment.seed_table --config-name cfg_micro --seeds 20 [--out FOLDER]`.

One row a system and seed: the healthy encoder must give A and never a wrong B or C; a detached context B before any
training; an encoder that reads nothing C; a decoder of two more L cycles INVALID before training. Finished rows stand
in `rows.jsonl` and are not run again, so an interrupted table goes on; a row of other sources or another config is run
anew. Prints the table as markdown.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from etrm.config.compose import load, to_dict
from etrm.config.schema import RunConfig
from etrm.errors import EtrmError
from etrm.experiment.certificate import blind, detached, short_config, with_more_cycles
from etrm.experiment.evidence import Evidence
from etrm.experiment.frozen_decoder import FrozenDecoderRun
from etrm.experiment.run_cache import key_parts, run_key
from etrm.experiment.session import parse_threads
from etrm.experiment.verdict import judge
from etrm.models.bundle import load_bundle

EXPECTED = {"healthy": "A", "detached": "B", "blind": "C", "more_cycles": "INVALID"}


@dataclass(frozen=True)
class Row:
    """One run. `rates` are k of n by rung, `trained` the executed updates; `key` is what it was made from."""

    system: str
    seed: int
    scenario: str
    trained: int
    rates: Mapping[str, tuple[int, int]]
    seconds: float
    key: str


def run_row(config: RunConfig, system: str, seed: int, folder: Path, key: str, oracles: bool) -> Row:
    """Run one system of EXPECTED at one seed."""
    seeded = replace(config, system=replace(config.system, seed=seed))
    if not oracles:
        seeded = replace(seeded, evaluation=replace(seeded.evaluation, oracle_tasks=0))
    bundle = load_bundle(config.bundle)
    edit = {"detached": detached, "blind": blind}.get(system)
    if system != "healthy":
        seeded = short_config(seeded, 150)
    if system == "more_cycles":
        bundle = with_more_cycles(bundle)
    start = time.monotonic()
    evidence: Evidence = FrozenDecoderRun(seeded, "full", folder / f"{system}-{seed}", bundle=bundle, edit=edit).run()
    rates = {r.name: (r.score.k, r.score.n) for r in evidence.rungs}
    found = {f"{r.name} with search": r.searched.score for r in evidence.rungs if r.searched is not None}
    rates |= {name: (score.k, score.n) for name, score in found.items()}
    trained = evidence.budget.executed_updates if evidence.budget else 0
    return Row(system, seed, judge(evidence).scenario, trained, rates, time.monotonic() - start, key)


def read_rows(path: Path) -> list[Row]:
    """The finished rows of an earlier call; a line that a kill cut short is taken out of the file."""
    if not path.exists():
        return []
    whole = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
    path.write_text("".join(whole))
    rows = [json.loads(line) for line in whole]
    return [Row(**{**row, "rates": {name: tuple(counts) for name, counts in row["rates"].items()}}) for row in rows]


def seed_table(
    config: RunConfig,
    seeds: Mapping[str, int],
    folder: Path,
    oracles: bool,
    say: Callable[[str], None] = print,
) -> list[Row]:
    """Run what is missing of `seeds` (system -> number of seeds) and return every row, in order."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "rows.jsonl"
    parts = {"oracles": oracles, **to_dict(config)}
    sha, threads = load_bundle(config.bundle).sha256, torch.get_num_threads()
    key = run_key(key_parts(parts, bundle=sha, encoder=config.encoder.name, threads=threads, seed=0, device="cpu"))
    done = {(r.system, r.seed): r for r in read_rows(path) if r.key == key}
    rows = []
    for system, count in seeds.items():
        for seed in range(count):
            row = done.get((system, seed))
            if row is None:
                row = run_row(config, system, seed, folder, key, oracles)
                with path.open("a") as file:
                    file.write(json.dumps(asdict(row)) + "\n")
                say(f"{system}, seed {seed}: {row.scenario} after {row.trained} updates, {row.seconds:.0f} s")
            rows.append(row)
    return rows


def markdown(rows: list[Row]) -> str:
    """One line a system: scenarios counted, median and range of each rung's rate, updates, seconds."""
    lines = [
        "| system | expected | as expected | other verdicts | rungs: median (lowest to highest) | updates | seconds |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for system in dict.fromkeys(r.system for r in rows):
        own = [r for r in rows if r.system == system]
        others = [r.scenario for r in own if r.scenario != EXPECTED[system]]
        told = "; ".join(
            f"{name} {statistics.median(rates):.1%} ({min(rates):.1%} to {max(rates):.1%})"
            for name in dict.fromkeys(n for r in own for n in r.rates)
            if (rates := [k / n for r in own if name in r.rates for k, n in [r.rates[name]]])
        )
        right = f"{sum(r.scenario == EXPECTED[system] for r in own)} of {len(own)}"
        trained = ", ".join(str(updates) for updates in sorted({r.trained for r in own}))
        seconds = f"{statistics.median(r.seconds for r in own):.0f}"
        cells = (system, EXPECTED[system], right, ", ".join(others) or "none", told or "none", trained, seconds)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Run the table; exit 1 if a system gave another verdict than expected in more than one seed of twenty."""
    parser = argparse.ArgumentParser(prog="python -m etrm.experiment.seed_table", description=__doc__)
    parser.add_argument("--config-name", default="cfg_micro")
    parser.add_argument("--seeds", type=int, default=20, help="of the healthy and the detached system; others half")
    parser.add_argument("--systems", nargs="*", choices=tuple(EXPECTED), default=list(EXPECTED))
    parser.add_argument("--oracles", action="store_true", help="with the oracles of each healthy run")
    parser.add_argument("--out", type=Path, help="default: runs/seeds/<config name>")
    options = parser.parse_args(arguments)
    torch.set_num_threads(parse_threads(os.environ.get("ETRM_THREADS")))
    counts = {s: options.seeds if s in ("healthy", "detached") else -(-options.seeds // 2) for s in options.systems}
    try:
        config = load(RunConfig, options.config_name)
        rows = seed_table(config, counts, options.out or Path("runs/seeds") / options.config_name, options.oracles)
    except EtrmError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    print(markdown(rows))
    wrong = [r for r in rows if r.scenario != EXPECTED[r.system]]
    return int(len(wrong) > len(rows) // 20)


if __name__ == "__main__":
    sys.exit(main())
