"""The verdict as one panel that a newcomer understands in ten seconds, and the same as plain text for logs and CI.

Notable: rates never stand alone, each comes as k of n with its interval and its nulls; what the decoder already knew
is told beside the figure it flatters. `python -m etrm.experiment.panel --demo A` shows an invented one.
"""

import argparse
import sys
from collections.abc import Mapping

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from etrm.experiment.demo_evidence import demo_evidence
from etrm.experiment.evidence import RUNGS, OracleEvidence, Score
from etrm.experiment.reading import percent, rate, read_rung
from etrm.experiment.verdict import Verdict, judge
from etrm.experiment.verdict_schema import SCENARIOS

MEANING = {
    "A": "yes: the encoder drives the frozen decoder on tasks it has never seen",
    "B": "broken: the loss does not reach the whole encoder, so it cannot learn",
    "C": "no: the encoder trains, but what it learnt does not carry over to unseen tasks",
    "INVALID": "no answer: the experiment itself is not in order, its numbers mean nothing",
    "UNDECIDED": "no answer yet: the evidence cannot tell",
}
COLOUR = {"A": "green", "B": "red", "C": "yellow", "INVALID": "magenta", "UNDECIDED": "cyan"}
DEPTH = {
    "seen_task": "tasks it trained on, new queries",
    "unseen_composition": "rules never shown to it",
    "unseen_augmentation": "trained tasks, turned or recoloured anew",
    "unseen_task": "tasks never shown to it",
}
WORST_LAST = ("A", "C", "B", "UNDECIDED", "INVALID")
Figure = tuple[str, str, str]  # what, measured, compared with


def figures(verdict: Verdict) -> list[Figure]:
    """Gradient, loss, the arm's rungs, ceilings: what each measured and against what."""
    evidence = verdict.evidence
    gradient, loss = evidence.gradient, evidence.loss
    at = f" at {gradient.place}" if gradient.place else ""
    rows: list[Figure] = [("gradient", f"{gradient.state or 'not measured'}{at}", gradient.detail)]
    if loss is None or loss.probe_start is None or loss.probe_end is None:
        rows.append(("loss (nats)", "not measured", ""))
    else:
        controls = f"constant context {_nats(loss.constant_context_loss)}, mismatched {_nats(loss.mismatched_loss)}"
        rows.append(("loss (nats)", f"{loss.probe_start:.3g} to {loss.probe_end:.3g}", controls))
    rows += [_rung_figure(verdict, name) for name in RUNGS[evidence.arm]]
    own = "not run" if evidence.positive_control is None else short(evidence.positive_control)
    oracles = (
        f"oracle, many pairs: {_oracle(evidence.oracle_many)}; demonstrations only: {_oracle(evidence.oracle_demos)}"
    )
    return [*rows, ("ceilings", f"decoder's own contexts: {own}", oracles)]


def short(score: Score) -> str:
    """'307 of 512 (60 % [52 %, 67 %])'."""
    return f"{score.k} of {score.n} ({percent(rate(score))} [{percent(score.ci95[0])}, {percent(score.ci95[1])}])"


def _rung_figure(verdict: Verdict, name: str) -> Figure:
    rung = verdict.evidence.rung(name)
    if rung is None:
        return f"{name}: {DEPTH[name]}", "not evaluated", ""
    sizes = {m.n for m in rung.nulls.values()}
    each = "" if len(sizes) == 1 else " of {n}"  # the nulls share the rung's queries, so "of n" is told once
    counts = ", ".join(f"{null} {m.k}" + each.format(n=m.n) for null, m in rung.nulls.items())
    nulls = "nulls: none measured" if not counts else f"nulls{f', of {sizes.pop()}' if not each else ''}: {counts}"
    known = {
        True: "decoder_known: the decoder was trained on these tasks",
        False: "",
        None: "decoder_known: not on record",
    }
    note = f"; {known[rung.decoder_known]}" if known[rung.decoder_known] and name != "seen_task" else ""
    word = "" if verdict.scenario == "INVALID" else f": {read_rung(verdict.evidence, name).word}"
    return f"{name}: {DEPTH[name]}", f"{short(rung.score)}, {rung.score.tasks} tasks{word}{note}", nulls


def _nats(value: float | None) -> str:
    return "not run" if value is None else f"{value:.3g}"


def _oracle(oracle: OracleEvidence | None) -> str:
    return "not run" if oracle is None else f"{oracle.solved} of {oracle.score.tasks} tasks"


def _headline(verdict: Verdict) -> str:
    """'arm calibration: A', its meaning and, where nothing was decided, what stood in the way."""
    seeds = f"{verdict.evidence.seeds} seed{'' if verdict.evidence.seeds == 1 else 's'}"
    sure = "" if verdict.scenario == "UNDECIDED" else f", confidence {verdict.confidence}"
    return f"{verdict.scenario}: {MEANING[verdict.scenario]} ({seeds}{sure})"


def why(verdict: Verdict) -> list[str]:
    """The deciding sentence without its tail of numbers; of failed checks up to three, and how many more there are."""
    if verdict.question != 1:
        return [verdict.reasons[0].split("; ")[0]]
    more = len(verdict.reasons) - 3
    return [*verdict.reasons[:3], *([f"and {more} more in verdict.json"] if more > 0 else [])]


def _notes(verdict: Verdict) -> list[str]:
    """What must be told with the figures: invented numbers, decoder that knows the tasks, the certificate."""
    evidence = verdict.evidence
    notes = ["these numbers are invented (demo)"] if evidence.provenance.get("demo") else []
    if evidence.certificate is not None:
        cert = evidence.certificate
        notes.append(f"certificate of {cert.date}, commit {cert.commit}: {cert.says}")
    return notes


def render_panel(verdicts: Mapping[str, Verdict], report_path: str, width: int) -> RenderableType:
    """One panel, a block for each arm; `width` in columns, `report_path`: where verdict.json and the report lie."""
    blocks: list[RenderableType] = []
    for arm, verdict in verdicts.items():
        title = Text.assemble(
            (f" {arm} ", "bold reverse"), "  ", (_headline(verdict), f"bold {COLOUR[verdict.scenario]}")
        )
        table = Table(box=None, show_header=True, header_style="dim", pad_edge=False, expand=True)
        for column, ratio in (("", 3), ("measured", 4), ("compared with", 5)):
            table.add_column(column, ratio=ratio, overflow="fold")
        for row in figures(verdict):
            table.add_row(*(Text(cell) for cell in row))  # Text: a name in brackets is no markup
        whys = [Text.assemble(("why: ", "bold"), reason) for reason in why(verdict)]
        steps = [
            Text.assemble(("next: ", "bold"), (step.command, "bold cyan"), f"   {step.why}")
            for step in verdict.next_steps[:3]
        ]
        blocks += [
            title,
            *whys,
            Text(""),
            table,
            Text(""),
            *steps,
            *(Text(note, style="dim") for note in _notes(verdict)),
            Text(""),
        ]
    files = Text.assemble(("files: ", "bold"), report_path)
    colour = COLOUR[max((v.scenario for v in verdicts.values()), key=WORST_LAST.index)] if verdicts else "white"
    question = "can this encoder drive this frozen decoder?"
    return Panel(Group(*blocks, files), title=question, border_style=colour, width=width, padding=(1, 2))


def plain(verdicts: Mapping[str, Verdict], report_path: str = "") -> str:
    """The same as lines of text without colour or box; one fact a line, so that a log can be searched."""
    lines = ["can this encoder drive this frozen decoder?"]
    for arm, verdict in verdicts.items():
        lines += [f"{arm}: {_headline(verdict)}", *(f"  why: {reason}" for reason in why(verdict))]
        for what, measured, compared in figures(verdict):
            lines.append(f"  {what} | {measured}" + (f" | {compared}" if compared else ""))
        lines += [f"  next: {step.command}  # {step.why}" for step in verdict.next_steps[:3]]
        lines += [f"  {note}" for note in _notes(verdict)]
    return "\n".join([*lines, f"files: {report_path}"] if report_path else lines)


def main(arguments: list[str] | None = None) -> int:
    """Print the panel of an invented verdict."""
    parser = argparse.ArgumentParser(prog="python -m etrm.experiment.panel", description="show an invented verdict")
    parser.add_argument("--demo", choices=SCENARIOS, required=True)
    parser.add_argument("--arm", choices=tuple(RUNGS), default="calibration")
    parser.add_argument("--plain", action="store_true", help="text without colour or box")
    options = parser.parse_args(arguments)
    verdicts = {options.arm: judge(demo_evidence(options.demo, options.arm))}
    console = Console()
    if options.plain or not console.is_terminal:
        sys.stdout.write(plain(verdicts, "runs/demo/") + "\n")
    else:
        console.print(render_panel(verdicts, "runs/demo/", min(console.width, 140)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
