"""What a run of pretrain_etrm.py can say for itself, under the keys of the judge of runs (`external_files.INFO`).

Notable: what was not measured stays None and is listed as missing, so such a run is UNDECIDED until its controls are
there; that the decoder knew the evaluated tasks is said here and in the verdict.
"""

from pathlib import Path
from typing import Any

from etrm.config.schema import RunConfig
from etrm.experiment.external import verdict_from
from etrm.experiment.external_files import read_metrics
from etrm.experiment.questions import Prepared
from etrm.models.bundle import Bundle
from etrm.training.loop import BudgetRecord
from etrm.training.run import official_arch

JOINED = "the decoder joined the training, so this is no frozen-decoder experiment and has no verdict"


def run_facts(
    config: RunConfig, bundle: Bundle, prepared: Prepared, record: BudgetRecord, last: dict[str, Any] | None
) -> dict[str, Any]:
    """The facts of a run whose decoder stayed frozen, as was checked. `last`: the line of its last evaluation."""
    known, asked = set(bundle.provenance.task_ids), prepared.questions.task_ids
    tensors = len(bundle.decoder.state_dict())
    arch = official_arch(bundle.structure)
    facts: dict[str, Any] = {
        "arm": "arc" if prepared.disjoint is not None else "calibration",
        "encoder": config.encoder.name,
        "objective": config.loss.objective,
        "seeds": 1,
        "decoder_tensors_matched": tensors,
        "decoder_tensors_total": tensors,
        "structure_trained": arch,
        "structure_run": arch,
        "decoder_bitwise_unchanged": True,
        "decoder_in_optimiser": False,
        "decoder_training_tasks_known": bool(known),
        "decoder_known": any(task in known for task in asked),
        "train_test_disjoint": prepared.disjoint,
        "context_finite_and_shaped": True,
        "grad_norm_after_clip": False,
        "grad_clip": config.optim.clip_norm,
        "train_tasks": len(prepared.source.task_ids),
        "planned_updates": record.planned_updates,
        "executed_updates": record.executed_updates,
        "warmup_updates": config.optim.warmup_updates,
        "eval_queries_total": len(prepared.questions.truths),
    }
    if last is not None:
        tasks = int(last["ARC/evaluated_tasks"])
        facts |= {
            "eval_tasks": tasks,
            "eval_tasks_solved": round(last["ARC/pass@1/all_tests"] * tasks),
            "eval_queries": int(last["ARC/evaluated_queries"]),
        }
    return facts


def run_verdict(run: str, log: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """The verdict that the run's own log and facts support, as JSON."""
    metrics, _ = read_metrics(log)
    return verdict_from(run, metrics, facts).to_json()
