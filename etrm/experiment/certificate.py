"""The instrument's own certificate: on this machine and these sources, a healthy encoder gave A and planted faults gave
B, C and INVALID.

An instrument that was never seen to give another answer proves nothing, so three faults are planted on the calibration
benchmark itself: a context that is detached (B), an encoder that never reads its demonstrations (C), a decoder run with
two L cycles more than it was trained with (INVALID). The ARC arm and a user's encoder are judged only under a
certificate. It is kept with the finished runs under a key of everything that can change it; deleting it is safe.

Legend: T context tokens, D hidden.
"""

import json
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path

import torch

from etrm.config.compose import to_dict
from etrm.config.json_values import read_json
from etrm.config.schema import RunConfig
from etrm.errors import EvaluationError
from etrm.evaluation.controls import ConstantContext
from etrm.experiment.evidence import Certificate, Evidence
from etrm.experiment.frozen_decoder import FrozenDecoderRun
from etrm.experiment.run_cache import RunCache, key_parts
from etrm.experiment.verdict import Scenario, judge
from etrm.experiment.verdict_schema import SCENARIOS
from etrm.models.bundle import Bundle, load_bundle
from etrm.models.encoders import Encoded
from etrm.models.etrm import ETRM, Episodes
from etrm.models.trm import TRMDecoder
from etrm.training.update import LossHead

Edit = Callable[[LossHead], None]
FILE = "certificate.json"
HEALTHY = "healthy"  # the folder of its healthy run
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Trial:
    """One planted fault and what came out. `expected` and `found` are scenarios."""

    fault: str
    expected: Scenario
    found: Scenario
    reason: str

    @property
    def passed(self) -> bool:
        """Did the instrument say what it must?"""
        return self.expected == self.found


def detached(head: LossHead) -> None:
    """Plant B: the context arrives, its gradient does not."""
    whole = head.model.context

    def context(episodes: Episodes) -> Encoded:
        return Encoded(whole(episodes).context.detach(), {})  # type: ignore[operator]

    head.model.context = context  # type: ignore[assignment]


def blind(head: LossHead) -> None:
    """Plant C: one learned context for every task; its gradient is intact and its loss falls."""
    assert isinstance(head.model, ETRM)
    head.model.encoder = ConstantContext(head.model.spec.context_mean)


def with_more_cycles(bundle: Bundle) -> Bundle:
    """Plant INVALID: the right weights in a decoder of two L cycles more, which its manifest then claims as well."""
    structure = replace(bundle.structure, l_cycles=bundle.structure.l_cycles + 2)
    decoder = TRMDecoder(structure)
    decoder.load_state_dict(bundle.decoder.state_dict())
    decoder.requires_grad_(False).eval()
    return replace(bundle, structure=structure, decoder=decoder)


def short_config(config: RunConfig, updates: int) -> RunConfig:
    """The arm's config with another budget and no oracles: planted faults need none."""
    return replace(
        config,
        budget=replace(config.budget, updates=updates, epochs=0, evaluations=4, log_every=min(25, updates)),
        optim=replace(config.optim, warmup_updates=min(config.optim.warmup_updates, updates // 10)),
        evaluation=replace(config.evaluation, oracle_tasks=0, constant_updates=updates),
    )


def planted(config: RunConfig, bundle: Bundle, folder: Path, updates: int = 150) -> tuple[Trial, ...]:
    """Run the three plants on the arm of `config`, each in a folder of its own below `folder`."""
    plants: Mapping[str, tuple[Scenario, Bundle, Edit | None]] = {
        "detached context": ("B", bundle, detached),
        "encoder that reads nothing": ("C", bundle, blind),
        "decoder with L_cycles + 2": ("INVALID", with_more_cycles(bundle), None),
    }
    trials = []
    for number, (name, (expected, given, edit)) in enumerate(plants.items()):
        run = FrozenDecoderRun(short_config(config, updates), "full", folder / str(number), bundle=given, edit=edit)
        verdict = judge(run.run())
        trials.append(Trial(name, expected, verdict.scenario, verdict.reasons[0]))
    return tuple(trials)


def certify(healthy: Evidence, trials: tuple[Trial, ...]) -> Certificate:
    """The certificate of a healthy run and its planted faults. EvaluationError names what came out otherwise."""
    verdict = judge(replace(healthy, certificate=None))
    wrong = [f"the healthy encoder gave {verdict.scenario}: {verdict.reasons[0]}"] if verdict.scenario != "A" else []
    wrong += [f"{t.fault} gave {t.found} instead of {t.expected}: {t.reason}" for t in trials if not t.passed]
    if {t.expected for t in trials} != {"B", "C", "INVALID"}:
        wrong.append("the plants do not cover B, C and INVALID")
    if wrong:
        raise EvaluationError(f"no certificate: {'; '.join(wrong)}; repeat it with: make experiment ARGS=--fresh")
    k, n = verdict.evidence.rungs[-1].score.k, verdict.evidence.rungs[-1].score.n
    found = ", ".join(f"{t.fault} gave {t.found}" for t in trials)
    return Certificate(
        date.today().isoformat(), commit(), f"healthy encoder gave A ({k} of {n} on {healthy.arm}); {found}"
    )


def earn(config: RunConfig, cache: RunCache) -> Certificate | str:
    """The certificate of `config`'s own encoder on its own benchmark, or why it has none.

    The healthy run and the plants are made once a key and kept in `cache`.
    """
    bundle = load_bundle(config.bundle)
    parts = key_parts(
        {"length": "certificate", "label": "healthy and planted", **to_dict(config)},
        bundle=bundle.sha256,
        encoder=config.encoder.name,
        threads=torch.get_num_threads(),
        seed=config.system.seed,
    )

    def produce(folder: Path) -> None:
        FrozenDecoderRun(config, "full", folder / HEALTHY).run()
        write_trials(folder, planted(config, bundle, folder))

    kept = cache.get_or_run(parts, produce).path
    healthy = Evidence.from_json(json.loads((kept / HEALTHY / "evidence.json").read_text()))
    try:
        return certify(healthy, read_trials(kept))
    except EvaluationError as error:
        return f"{error} (kept in {kept})"


def commit() -> str:
    """Short hash of the checkout's commit, with `+` where files differ from it; 'no git' outside a checkout."""
    try:
        head = subprocess.run(
            ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
        changed = subprocess.run(
            ["git", "-C", str(ROOT), "status", "--porcelain", "--", "etrm"], capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "no git"
    return head + "+" * bool(changed)


def write_trials(folder: Path, trials: tuple[Trial, ...]) -> None:
    """Keep what the plants gave, for later sessions of the same key."""
    (folder / FILE).write_text(json.dumps([asdict(t) for t in trials], indent=1) + "\n")


def read_trials(folder: Path) -> tuple[Trial, ...]:
    """The trials that `write_trials` kept; EvaluationError if the file is another thing."""
    path = folder / FILE
    try:
        trials = tuple(Trial(**row) for row in read_json(path, EvaluationError, "run again with --fresh"))
    except TypeError as error:
        raise EvaluationError(f"{path} holds no trials of a certificate: {error}; run again with --fresh") from error
    for trial in trials:
        texts = all(isinstance(value, str) for value in asdict(trial).values())
        if not texts or {trial.expected, trial.found} - set(SCENARIOS):
            raise EvaluationError(f"{path}: {trial!r:.120} is no trial of a certificate; run again with --fresh")
    return trials
