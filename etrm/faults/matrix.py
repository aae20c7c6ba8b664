"""Runs the bank: each fault through the whole experiment, the verdict beside what two naive suites would have said.

`python -m etrm.faults.matrix` writes docs/fault_matrix.md (finished rows stand in runs/faults/rows.jsonl and are kept
for the same sources). Baselines, run on the same planted system: "the loss falls and the gradient norm is not zero",
and the published plan's five assertions taken literally.
"""

import argparse
import inspect
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch

from etrm.config.compose import load
from etrm.config.schema import RunConfig
from etrm.errors import EtrmError
from etrm.experiment import arms, frozen_decoder
from etrm.experiment.certificate import commit
from etrm.experiment.checks import CHECK_RULES
from etrm.experiment.outcome import own_answers
from etrm.experiment.run_cache import sources_hash
from etrm.experiment.verdict import QUESTIONS, Verdict, judge
from etrm.faults.bank import REFUSED, Bench, Fault, load_bank
from etrm.models.bundle import load_bundle
from etrm.models.encoders import build_encoder
from etrm.models.etrm import ETRM
from etrm.training.update import LossHead

DOCUMENT = Path("docs/fault_matrix.md")
NAIVE_UPDATES = 300  # the healthy system answers 71 of 256 unseen queries by then, and passes all five assertions
STAGES = ("before training", "first updates", "short run", "full run")


@dataclass(frozen=True)
class Result:
    """What one fault led to. `named`: failed checks, the deciding question, and H3 where its findings failed."""

    fault: str
    verdict: str
    named: tuple[str, ...]
    stage: str
    seconds: float
    reason: str
    naive_two: str = "not run"  # "missed", "seen", "crashed"
    naive_five: str = "not run"
    key: str = ""


def bench_of(arm: str, folder: Path) -> Bench:
    """A healthy bench of an arm; its runs leave the oracles out, which no verdict on a fault needs."""
    config = load(RunConfig, f"cfg_{arm}")
    config = replace(config, evaluation=replace(config.evaluation, oracle_tasks=0))
    return Bench(config, load_bundle(config.bundle), folder)


def run_fault(planted: Fault | None, folder: Path) -> Result:
    """Run the experiment with one fault planted (None: healthy) and say what came out."""
    bench = bench_of(planted.arm if planted else "micro", folder)
    name = planted.id if planted else "healthy"
    start = time.monotonic()
    with planted.plant(bench) if planted else nullcontext():
        try:
            config = bench.config
            if bench.overrides:
                config = load(RunConfig, f"cfg_{planted.arm if planted else 'micro'}", bench.overrides)
            run = frozen_decoder.FrozenDecoderRun(config, "full", folder / "run", bundle=bench.bundle, edit=bench.edit)
            verdict = judge(run.run())
        except EtrmError as error:
            spent = time.monotonic() - start
            return Result(name, REFUSED, (type(error).__name__,), STAGES[0], spent, str(error))
    return Result(
        name, verdict.scenario, named(verdict), stage_of(verdict), time.monotonic() - start, verdict.reasons[0]
    )


def named(verdict: Verdict) -> tuple[str, ...]:
    """Names of the failed checks, of the question that decided, and of the hypotheses that stand supported."""
    failed = [c.name for c in verdict.checks if c.ok is False]
    supported = [name for name, h in verdict.hypotheses.items() if h.status == "supported"]
    return (*failed, *([QUESTIONS[verdict.question]] if verdict.question > 1 else []), *supported)


def stage_of(verdict: Verdict) -> str:
    """How far the run got before it was ended."""
    budget = verdict.evidence.budget
    if budget is None:
        return STAGES[0]
    return STAGES[1] if budget.executed_updates == 0 else STAGES[3]


def right(planted: Fault, result: Result) -> bool:
    """Is the verdict one of the fault's, and does one of its checks carry it?"""
    return result.verdict in planted.verdicts and bool(set(planted.check.split("|")) & set(result.named))


def naive(planted: Fault | None, folder: Path) -> tuple[str, str]:
    """What the two naive suites say of the same system: "missed" (all assertions hold), "seen" or "crashed"."""
    bench = bench_of(planted.arm if planted else "micro", folder)
    with planted.plant(bench) if planted else nullcontext():
        try:
            return _naive_run(bench, folder)
        except (EtrmError, RuntimeError, ValueError, TypeError, IndexError, AttributeError):
            return "crashed", "crashed"


def _naive_run(bench: Bench, folder: Path) -> tuple[str, str]:
    config = bench.config
    # Names are looked up where the experiment holds them, since plants replace them there.
    seams: Any = frozen_decoder
    bundle = bench.bundle or seams.load_bundle(config.bundle)
    if bench.overrides:
        config = load(RunConfig, "cfg_micro", bench.overrides)
    arm: arms.Arm = seams.build_arm(config, bundle)
    torch.manual_seed(config.system.seed)
    head = LossHead(ETRM(build_encoder(config.encoder, bundle.spec()), bundle.decoder, bundle.spec()), config.loss)
    bench.edit(head)
    assert isinstance(head.model, ETRM)
    before = {n: t.clone() for n, t in head.decoder.state_dict().items()}
    budget = replace(config.budget, updates=NAIVE_UPDATES, epochs=0, log_every=10)
    config = replace(config, budget=budget, optim=replace(config.optim, warmup_updates=20))
    state = seams.encoder_state(config, head, len(arm.source.task_ids))
    log = folder / "naive.jsonl"
    head.train()
    seams.fit(config, state, arm.source, np.random.default_rng(0), torch.device("cpu"), log)
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    moves = bool(rows[0]["grad/encoder_norm"])
    falls = rows[-1]["train/lm_loss"] < rows[0]["train/lm_loss"]
    kept = all(torch.allclose(t.float(), before[n].float(), atol=1e-5) for n, t in head.decoder.state_dict().items())
    quiet = ".detach(" not in inspect.getsource(type(head.model.encoder))
    found = own_answers(config, head.model, arm.rungs[-1])
    above = found.exact.mean() > 1 / len(arm.rungs[-1].task_ids)
    return _word(moves and falls), _word(moves and quiet and kept and falls and bool(above))


def _word(passes: bool) -> str:
    return "missed" if passes else "seen"


def markdown(results: Iterable[Result], bank: dict[str, Fault]) -> str:
    """docs/fault_matrix.md: totals by family, then every fault with its verdict, check, stage and baselines."""
    rows = {r.fault: r for r in results}
    healthy = rows.pop("healthy", None)
    lines = [
        "# The fault bank",
        "",
        f"Generated on {date.today().isoformat()} at commit {commit()} by `python -m etrm.faults.matrix`. Each bug is "
        "planted into the healthy `micro` system (some into `arc`) and run through the whole experiment. Two naive "
        "suites look at the same systems: *two signals* (the loss falls, the gradient norm is not zero) and *five "
        "assertions* (the published plan's, taken literally).",
        "",
        "| family | faults | right verdict and check | within the first updates | missed by two signals "
        "| missed by five assertions | seconds |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    families = list(dict.fromkeys(f.family for f in bank.values()))
    for family in (*families, "all"):
        own = [(bank[i], r) for i, r in rows.items() if family in ("all", bank[i].family)]
        good = sum(right(f, r) for f, r in own)
        early = sum(r.stage in STAGES[:2] for _, r in own)
        two, five = (sum(getattr(r, name) == "missed" for _, r in own) for name in ("naive_two", "naive_five"))
        seconds = sum(r.seconds for _, r in own)
        lines.append(f"| {family} | {len(own)} | {good} | {early} | {two} | {five} | {seconds:.0f} |")
    if healthy is not None:
        words = [w.replace("missed", "fine") for w in (healthy.naive_two, healthy.naive_five)]
        lines += ["", f"The healthy system beside them: {healthy.verdict}; the naive suites say {' and '.join(words)}."]
    columns = ("fault", "catalogue", "what happened", "verdict", "named by", "stage", "naive reader", "two signals")
    lines += ["", f"| {' | '.join(columns)} | five assertions | s |", "| --- " * (len(columns) + 2) + "|"]
    for i, r in rows.items():
        f = bank[i]
        mark = "" if right(f, r) else " (WRONG)"
        by = ", ".join(n for n in r.named if n in f.check.split("|")) or ", ".join(r.named) or "nothing"
        number = "" if f.catalogue is None else str(f.catalogue)
        cells = (f"`{i}`", number, f.happened, r.verdict + mark, by, r.stage, f.naive, r.naive_two, r.naive_five)
        lines.append(f"| {' | '.join(cells)} | {r.seconds:.0f} |")
    lines += ["", "## Checks and the faults that trip them", "", "| check | faults |", "| --- | --- |"]
    for name in CHECK_RULES:
        lines.append(f"| {name} | {', '.join(f'`{i}`' for i, r in rows.items() if name in r.named) or 'none'} |")
    return "\n".join(lines) + "\n"


def _share_out(names: list[str], options: argparse.Namespace) -> None:
    """Run the faults in several processes that append to one file of rows; what one leaves, the caller runs itself."""
    common = [
        sys.executable,
        "-m",
        "etrm.faults.matrix",
        "--rows",
        str(options.rows),
        "--threads",
        str(options.threads),
    ]
    common += ["--without-baselines"] if options.without_baselines else []
    shares = (names[i :: options.processes] for i in range(options.processes))
    workers = [subprocess.Popen([*common, "--only", *share]) for share in shares if share]
    for worker in workers:
        worker.wait()


def main(arguments: list[str] | None = None) -> int:
    """Run what is missing and write the matrix; exit 1 if a fault got another verdict or check than its own."""
    parser = argparse.ArgumentParser(prog="python -m etrm.faults.matrix", description=__doc__)
    parser.add_argument("--only", nargs="*", help="ids of faults; default all")
    parser.add_argument("--out", type=Path, default=DOCUMENT)
    parser.add_argument("--rows", type=Path, default=Path("runs/faults/rows.jsonl"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--processes", type=int, default=1, help="share the faults among so many, then assemble")
    parser.add_argument("--without-baselines", action="store_true")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    bank = load_bank()
    if unknown := sorted(set(options.only or ()) - {"healthy", *bank}):
        parser.error(f"no fault named {', '.join(unknown)}; there are {', '.join(bank)}")
    key = sources_hash()
    options.rows.parent.mkdir(parents=True, exist_ok=True)
    if options.processes > 1:
        _share_out(["healthy", *bank] if options.only is None else options.only, options)
    lines = options.rows.read_text().splitlines() if options.rows.exists() else []
    done: dict[str, Result] = {}
    for line in lines:
        row: dict[str, Any] = json.loads(line)
        if row["key"] == key:
            done[row["fault"]] = Result(**{**row, "named": tuple(row["named"])})
    wanted = [bank.get(i) for i in options.only or ("healthy", *bank)]
    for planted in wanted:
        name = planted.id if planted else "healthy"
        if name in done:
            continue
        with tempfile.TemporaryDirectory() as folder:
            result = run_fault(planted, Path(folder))
            if not options.without_baselines:
                second = Path(folder, "naive")
                second.mkdir()
                two, five = naive(planted, second)
                result = replace(result, naive_two=two, naive_five=five)
        done[name] = replace(result, key=key)
        with options.rows.open("a") as file:
            file.write(json.dumps(asdict(done[name])) + "\n")
        good = planted is None or right(planted, result)
        print(f"{'ok   ' if good else 'WRONG'} {name}: {result.verdict} {result.named[:4]} {result.stage}, "
              f"{result.seconds:.0f} s{'' if good else ': ' + result.reason[:160]}", flush=True)  # fmt: skip
    ordered = [done[n] for n in ("healthy", *bank) if n in done]
    if not options.only:
        options.out.write_text(markdown(ordered, bank))
    wrong = [r.fault for r in ordered if r.fault in bank and not right(bank[r.fault], r)]
    print(f"{len(ordered) - len(wrong)} of {len(ordered)} as expected{': wrong ' + ', '.join(wrong) if wrong else ''}")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
