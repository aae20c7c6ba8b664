"""What to run next, by situation: the published plan's next steps as commands that can be pasted.

Notable: this table and the remedies in `checks` are the only places where verdicts name commands; keep both in step
with the command lines of README.md.
"""

from dataclasses import dataclass

from etrm.experiment.checks import CERTIFY, GATE, INSPECT, PLAN, SWEEP, Hypothesis

TRAIN = "python pretrain_etrm.py --config-name cfg_test_frozen_decoder"
PROBE = "python -m etrm.probes --config-name cfg_micro"
ORACLE = "python -m etrm.experiment.oracles --config-name cfg_calibration"
UNFREEZE = f"{TRAIN} freeze.decoder_updates=1000 freeze.joint_lr=3e-5"
FULL = "pytest -m frozen_decoder --slow"


@dataclass(frozen=True)
class Step:
    """Why, and the command that does it."""

    why: str
    command: str
    hypothesis: Hypothesis


NEXT_STEPS: dict[str, tuple[Step, ...]] = {
    "A": (
        Step("unfreeze the decoder once the encoder has settled, at a tenth of its rate", UNFREEZE, "H4"),
        Step("train both jointly and see whether they interfere", f"{TRAIN} freeze.decoder_updates=0", "H4"),
        Step("sweep the learning-rate schedule", SWEEP, "H4"),
    ),
    "B": (
        Step("print the gradient of every encoder layer", PROBE, "H2"),
        Step("find the operation that breaks the path: the same command names its file and line", PROBE, "H2"),
        Step("check the path from context to loss, by token and by sample", f"{GATE} path", "H2"),
        Step("run every test of H2", f"{GATE} h2", "H2"),
    ),
    "C": (
        Step("measure how much the context varies between tasks", f"{FULL} -k h3", "H3"),
        Step("compare the context's range with the decoder's own table", f"{FULL} -k h3", "H3"),
        Step("try a stronger encoder", f"{FULL} --encoder my_encoder.py:make", "H7"),
        Step("sweep the encoder's width, depth and kind", "pytest -m sweep -k h7", "H7"),
    ),
    "C.not_steerable": (
        Step("before blaming the encoder, give the oracle more restarts", f"{ORACLE} --restarts 8", "H7"),
    ),
    "INVALID": (Step("run what must hold before an outcome means anything", f"{GATE} 'h1 or h5 or h6'", "H1"),),
    "UNDECIDED.validity": (Step("repeat the run with every check evaluated", "make experiment", "H6"),),
    "UNDECIDED.gradient": (Step("measure the gradient against finite differences", PROBE, "H2"),),
    "UNDECIDED.optimisation": (
        Step("sweep learning rate and warm-up", SWEEP, "H4"),
        Step("train longer: a plateau is not a verdict", f"{TRAIN} budget.epochs=80000", "H4"),
    ),
    "UNDECIDED.controls": (Step("run in full, with every control on the same queries", FULL, "H6"),),
    "UNDECIDED.power": (
        Step("plan how many tasks, queries and minutes would decide", PLAN, "H6"),
        Step("run it in full", FULL, "H6"),
    ),
    "UNDECIDED.decoder_known": (
        Step("evaluate on tasks that the decoder was not trained on", CERTIFY, "H5"),
        Step("list the tasks that the decoder was trained on", INSPECT, "H5"),
    ),
}
