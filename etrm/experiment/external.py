"""Which verdict somebody else's run supports: `python -m etrm.experiment.external --metrics FILE [--checkpoint-info
FILE]`.

The run's numbers are turned into the same `Evidence` and judged by the same `judge`; what the run did not measure
stays None, so an outside run is UNDECIDED until it shows what ours must show, and INVALID where what it shows is
wrong. Notable: a metrics file can never show an intact gradient (one norm says nothing of samples, tokens and
parameters), but a norm of exactly zero shows a blocked one. The public frozen-decoder run is shipped as the example
(`--example`). Interval for k of n tasks: Clopper and Pearson, Biometrika 26, 1934.
"""

import argparse
import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from etrm.errors import EvaluationError
from etrm.evaluation.statistics import clopper_pearson
from etrm.experiment.checks import Check, check
from etrm.experiment.evidence import (
    ALL_NULLS,
    MAX_WARMUP_SHARE,
    RUNGS,
    USEFUL,
    ArmName,
    Budget,
    Evidence,
    Finding,
    GradientEvidence,
    LossEvidence,
    NullEvidence,
    RungEvidence,
    Score,
)
from etrm.experiment.external_files import INFO, check_info, read_checkpoint_info, read_metrics
from etrm.experiment.seed_reading import SeedRow, seed_reading, seed_scenario
from etrm.experiment.verdict import Verdict, exit_code, judge
from etrm.experiment.wording import MEANING

EXAMPLE = "public_run_2026_01_21.json"
FIT = 0.90  # the published plan's own criterion for a handful of tasks: "> 90 % or something is broken"


@dataclass(frozen=True)
class ExternalReading:
    """`missing`: what the judge could not find, one sentence each; `seed_scenario`: by the published plan's numbers."""

    name: str
    verdict: Verdict
    missing: tuple[str, ...]
    notes: tuple[str, ...]
    seed_scenario: str
    seed_rows: tuple[SeedRow, ...]

    def to_json(self) -> dict[str, Any]:
        """As a dict of JSON's own types."""
        verdict = self.verdict
        return {
            "name": self.name,
            "scenario": verdict.scenario,
            "reasons": list(verdict.reasons),
            "missing": list(self.missing),
            "notes": list(self.notes),
            "seed_scenario": self.seed_scenario,
            "seed_reading": [row.to_json() for row in self.seed_rows],
        }


def verdict_from(name: str, metrics: Mapping[str, float | None], info: Mapping[str, Any]) -> ExternalReading:
    """The verdict that these metrics (seed's names, see `read_metrics`) and this checkpoint info support."""
    check_info(info)
    evidence = external_evidence(metrics, info)
    missing = tuple(f"{key}: {says}" for key, (_, says) in INFO.items() if says and info.get(key) is None)
    rows = tuple(seed_reading(metrics))
    return ExternalReading(name, judge(evidence), missing, _notes(metrics, info), seed_scenario(metrics), rows)


def public_run() -> ExternalReading:
    """The shipped example: the public frozen-decoder run of 2026-01-21."""
    text = resources.files("etrm").joinpath("assets", EXAMPLE).read_text(encoding="utf-8")
    document = json.loads(text)
    return verdict_from(document["name"], document["metrics"], document["checkpoint_info"])


def external_evidence(metrics: Mapping[str, float | None], info: Mapping[str, Any]) -> Evidence:
    """Everything that the files say, and None for the rest. Raises EvaluationError for counts that are none."""
    arm: ArmName = info.get("arm", "arc")
    first, last = metrics.get("train/lm_loss/first"), metrics.get("train/lm_loss")
    loss = LossEvidence(
        probe_start=first, probe_end=last, p_decrease=None, own_loss=last,
        constant_context_loss=info.get("constant_context_loss"), p_below_constant=None,
        mismatched_loss=info.get("mismatched_loss"), p_below_mismatched=None, plateaued=None, constant_sufficed=None,
    )  # fmt: skip
    return Evidence(
        arm=arm, encoder=str(info.get("encoder", "not told")), user_encoder=True,
        objective=str(info.get("objective", "not told")), seeds=int(info.get("seeds", 1)),
        validity=_checks(metrics, info), gradient=_gradient(metrics, info), loss=loss,
        rungs=_rungs(arm, info), oracle_many=None, oracle_demos=None, positive_control=None, findings=_fit(metrics),
        budget=_budget(info), certificate=None, required_nulls=ALL_NULLS, provenance={"external": True},
        metrics=dict(metrics),
    )  # fmt: skip


def _checks(metrics: Mapping[str, float | None], info: Mapping[str, Any]) -> tuple[Check, ...]:
    """One check for every fact in the info; what it does not mention is left out and counts as not evaluated."""
    found: list[Check] = []

    def fact(name: str, key: str, good: bool = True) -> None:
        if info.get(key) is not None:
            found.append(check(name, info[key] is good, f"{key}: {info[key]}"))

    trained, run = info.get("structure_trained"), info.get("structure_run")
    if trained is not None and run is not None:
        wrong = [
            f"{k} is {run.get(k)}, the decoder was trained with {v}" for k, v in trained.items() if run.get(k) != v
        ]
        found.append(check("structure", not wrong, "; ".join(wrong) or "as trained"))
    matched, total = info.get("decoder_tensors_matched"), info.get("decoder_tensors_total")
    if matched is not None and total is not None:
        found.append(check("bundle_whole", matched == total, f"{matched} of {total} tensors"))
    fact("golden_logits", "golden_logits_reproduced")
    fact("decoder_unchanged", "decoder_bitwise_unchanged")
    fact("decoder_not_optimised", "decoder_in_optimiser", good=False)
    fact("provenance", "decoder_training_tasks_known")
    fact("disjoint", "train_test_disjoint")
    fact("context_contract", "context_finite_and_shaped")
    if info.get("own_context_exact") is not None:
        exact = float(info["own_context_exact"])
        found.append(check("decoder_competent", exact >= FIT, f"{exact:.1%} exact with its own contexts"))
    numbers = [value for value in metrics.values() if value is not None]
    if numbers:
        broken = [name for name, value in metrics.items() if value is not None and not math.isfinite(value)]
        found.append(
            check("finite", not broken, f"not finite: {', '.join(broken)}" if broken else "every metric is finite")
        )
    asked, evaluated = info.get("eval_queries_total"), info.get("eval_queries")
    if asked is not None and evaluated is not None:
        found.append(check("queries_evaluated", asked == evaluated, f"{evaluated} of {asked} queries"))
    planned, executed = info.get("planned_updates"), info.get("executed_updates")
    if planned is not None and executed is not None:
        wanted, entered = info.get("planned_episodes"), info.get("distinct_episodes")
        counted = wanted is not None and entered is not None
        ok = False if planned != executed or (counted and wanted != entered) else True if counted else None
        told = f"{entered} of {wanted} distinct episodes" if counted else "distinct episodes not counted"
        found.append(check("budget", ok, f"{executed} of {planned} updates; {told}"))
    return (*found, *_schedule(info), *_power(info))


def _schedule(info: Mapping[str, Any]) -> list[Check]:
    warmup, executed = info.get("warmup_updates"), info.get("executed_updates")
    if warmup is None or not executed:
        return []
    share = warmup / executed
    return [
        check("schedule", warmup < executed and share <= MAX_WARMUP_SHARE, f"warm-up took {share:.0%} of the updates")
    ]


def _power(info: Mapping[str, Any]) -> list[Check]:
    """Enough tasks: would at least a run without a single success, on as many tasks, exclude the useful 2 %?"""
    tasks, solved = info.get("eval_tasks"), info.get("eval_tasks_solved")
    if tasks is None or solved is None:
        return []
    low, high = _interval(solved, tasks)
    enough = low > USEFUL or high < USEFUL
    return [
        check(
            "enough_tasks", enough, f"{solved} of {tasks} tasks, 95 % interval {low:.1%} to {high:.1%}, useful is 2 %"
        )
    ]


def _interval(solved: int, tasks: int) -> tuple[float, float]:
    if not (isinstance(tasks, int) and isinstance(solved, int) and 0 <= solved <= tasks and tasks > 0):
        raise EvaluationError(
            f"eval_tasks_solved = {solved!r} of eval_tasks = {tasks!r} is no count; correct the info file"
        )
    return clopper_pearson(solved, tasks)


def _rungs(arm: str, info: Mapping[str, Any]) -> tuple[RungEvidence, ...]:
    tasks, solved = info.get("eval_tasks"), info.get("eval_tasks_solved")
    if tasks is None or solved is None or arm not in RUNGS:
        return ()
    score = Score(solved, tasks, tasks, _interval(solved, tasks))
    mismatched = info.get("mismatched_solved")
    nulls = {} if mismatched is None else {"mismatched": NullEvidence(mismatched, tasks, None)}
    return (RungEvidence(RUNGS[arm][-1], score, nulls, info.get("decoder_known"), 1 / tasks),)


def _gradient(metrics: Mapping[str, float | None], info: Mapping[str, Any]) -> GradientEvidence:
    norm = metrics.get("grad/encoder_norm")
    if norm is None:
        return GradientEvidence(None, "", "grad/encoder_norm was not logged")
    if norm == 0.0:
        return GradientEvidence("blocked", "encoder", "grad/encoder_norm is exactly 0")
    clipped = (
        " read after clipping, which says only that the norm before it was at least that"
        if info.get("grad_norm_after_clip")
        else ""
    )
    return GradientEvidence(None, "", f"grad/encoder_norm = {norm:.3g}{clipped}; nothing by parameter, sample or token")


def _fit(metrics: Mapping[str, float | None]) -> tuple[Finding, ...]:
    exact = metrics.get("train/exact_accuracy")
    if exact is None:
        return ()
    return (
        Finding(
            "train/exact_accuracy",
            exact,
            FIT,
            None,
            "H4",
            "exact on the trained tasks; token accuracy is no substitute",
        ),
    )


def _budget(info: Mapping[str, Any]) -> Budget | None:
    keys = ("planned_updates", "executed_updates", "planned_episodes", "distinct_episodes", "warmup_updates")
    if any(info.get(key) is None for key in keys):
        return None
    planned, executed, episodes, distinct, warmup = (int(info[key]) for key in keys)
    return Budget(planned, executed, episodes, distinct, warmup / max(executed, 1), warmup < executed)


def _notes(metrics: Mapping[str, float | None], info: Mapping[str, Any]) -> tuple[str, ...]:
    """What a reader of the published numbers should know even though it is not what decides."""
    notes = [
        f"{f.name} = {f.value:.2%}: did not fit (expected at least {f.low:.0%})" for f in _fit(metrics) if not f.healthy
    ]
    if info.get("grad_norm_after_clip"):
        notes.append("the gradient norm was read after clipping: it cannot leave the 'healthy' band")
    if info.get("decoder_known"):
        notes.append(
            "decoder_known: the decoder was trained on these tasks' demonstrations, so a success would be no plain A"
        )
    controls = [
        key
        for key in ("constant_context_loss", "mismatched_loss", "mismatched_solved", "oracle_solved")
        if info.get(key) is None
    ]
    if controls:
        notes.append(f"no control: {', '.join(controls)}")
    return tuple(notes)


def render(reading: ExternalReading) -> str:
    """The reading as text: verdict, why, what is missing, the plan's reading beside ours."""
    verdict = reading.verdict
    lines = [reading.name, f"{verdict.scenario}: {MEANING[verdict.scenario]}"]
    lines += [f"  why: {reason}" for reason in verdict.reasons] + [f"  note: {note}" for note in reading.notes]
    lines += [f"  missing: {item}" for item in reading.missing]
    for row in reading.seed_rows:
        value = "" if row.value is None else f" = {row.value:.4g}"
        lines.append(f"  {row.metric}{value}: the plan says {row.seed_says!r}; we say: {row.we_say}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Exit codes: 0 for A, B or C, 10 for UNDECIDED, 11 for INVALID, 2 for a file that cannot be read."""
    parser = argparse.ArgumentParser(prog="python -m etrm.experiment.external", description="judge somebody else's run")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--metrics", type=Path, help="JSONL, CSV or W&B export")
    source.add_argument("--example", action="store_true", help="the public run of 2026-01-21")
    parser.add_argument("--checkpoint-info", type=Path, help="JSON object; its keys are listed under 'missing'")
    parser.add_argument("--run", help="which run of a W&B export that holds several")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    try:
        if options.example:
            reading = public_run()
        else:
            metrics, info = read_metrics(options.metrics, options.run)
            if options.checkpoint_info is not None:
                info = {**info, **read_checkpoint_info(options.checkpoint_info)}
            reading = verdict_from(options.metrics.name, metrics, info)
    except EvaluationError as problem:
        sys.stderr.write(f"{problem}\n")
        return 2
    sys.stdout.write((json.dumps(reading.to_json(), indent=1) if options.json else render(reading)) + "\n")
    return exit_code({"external": reading.verdict}, gates_failed=False)


if __name__ == "__main__":
    sys.exit(main())
