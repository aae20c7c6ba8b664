"""The verdict as one panel that a newcomer understands in ten seconds, and the same as plain text for logs and CI.

Notable: rates never stand alone, each comes as k of n with its interval and its nulls; what the decoder already knew
is told beside the figure it flatters. `python -m etrm.experiment.panel --demo A` shows an invented one.
"""

import argparse
import sys
from collections.abc import Mapping

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from etrm.experiment.demo_evidence import demo_evidence
from etrm.experiment.evidence import RUNGS, OracleEvidence, Score, SearchEvidence
from etrm.experiment.reading import percent, rate, read_rung
from etrm.experiment.verdict import Verdict, judge
from etrm.experiment.verdict_schema import SCENARIOS
from etrm.experiment.wording import COLOUR, DEPTH, HEADLINE, MEANING, NULL_NAMES, SIGN, questions

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
    for name in RUNGS[evidence.arm]:
        rows.append(_rung_figure(verdict, name))
        rung = evidence.rung(name)
        if rung is not None and rung.searched is not None:
            rows.append(search_figure(rung.searched, name))
    own = "not run" if evidence.positive_control is None else short(evidence.positive_control)
    oracles = (
        f"oracle, many pairs: {_oracle(evidence.oracle_many)}; demonstrations only: {_oracle(evidence.oracle_demos)}"
    )
    return [*rows, ("ceilings", f"decoder's own contexts: {own}", oracles)]


def search_figure(found: SearchEvidence, name: str) -> Figure:
    """The row of a rung after test-time search, what the search cost and what it did to its own loss."""
    fitted = f"loss on the demonstrations {_nats(found.loss_before)} to {_nats(found.loss_after)}"
    cost = f"{found.updates} updates and {found.seconds_per_query:.2g} s a query; {fitted}"
    return f"after search, {name}: decides nothing", short(found.score), cost


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
    return f"{verdict.scenario}: {MEANING[verdict.scenario]} ({_seeds(verdict)})"


def _seeds(verdict: Verdict) -> str:
    seeds = f"{verdict.evidence.seeds} seed{'' if verdict.evidence.seeds == 1 else 's'}"
    return seeds if verdict.scenario == "UNDECIDED" else f"{seeds}, confidence {verdict.confidence}"


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
    """One panel, a block for each arm; `width` in columns, `report_path`: the report, or where verdict.json lies."""
    blocks: list[RenderableType] = []
    for arm, verdict in verdicts.items():
        tone = COLOUR[verdict.scenario]
        evidence = verdict.evidence
        title = Text.assemble(
            (f" {verdict.scenario} ", f"bold reverse {tone}"), "  ",
            (f"{HEADLINE[verdict.scenario]}", f"bold {tone}"),
            (f"   {arm} arm, encoder {evidence.encoder}, {_seeds(verdict)}", "dim"),
        )  # fmt: skip
        table = Table(box=None, show_header=True, header_style="dim", pad_edge=False, expand=True, padding=(0, 2, 0, 0))
        for column, ratio in (("", 3), ("measured", 4), ("compared with", 4)):
            table.add_column(column, ratio=ratio, overflow="fold")
        for row in key_figures(verdict):
            table.add_row(*(Text(cell) for cell in row))  # Text: a name in brackets is no markup
        blocks += [
            title,
            Text(f"{verdict.scenario}: {MEANING[verdict.scenario]}"),
            Text(""),
            _asked(verdict),
            *(Text.assemble(("why: ", "bold"), reason) for reason in why(verdict)),
            Text(""),
            table,
            Text(""),
            *(
                Text.assemble(("next: ", "bold"), step.why, "\n      ", (step.command, "bold cyan"))
                for step in verdict.next_steps[:1]
            ),
            *(Text(note, style="dim") for note in _notes(verdict)),
            Rule(style="dim"),
        ]
    files = Text.assemble(("report: ", "bold"), report_path)
    colour = COLOUR[max((v.scenario for v in verdicts.values()), key=WORST_LAST.index)] if verdicts else "white"
    question = "can this encoder drive this frozen decoder?"
    return Panel(Group(*blocks, files), title=question, border_style=colour, width=width, padding=(1, 2))


def _asked(verdict: Verdict) -> Text:
    """The five questions in a row, the deciding one underlined."""
    style = {"yes": "green", "no": "bold red", "open": "bold cyan", "unasked": "dim"}
    line = Text()
    for q in questions(verdict):
        mark = " underline" if q.number == verdict.question else ""
        line.append(f"{SIGN[q.state]} {q.short}", style=style[q.state] + mark)
        line.append("   ")
    return line


def key_figures(verdict: Verdict) -> list[Figure]:
    """`figures` for a reader in a hurry: of the nulls the two that every A needs, and the one that comes nearest."""
    rows = []
    for what, measured, compared in figures(verdict):
        name, _, depth = what.partition(": ")
        rung = verdict.evidence.rung(name)
        if rung is not None and rung.nulls:
            best = max(rung.nulls, key=lambda null: rate(rung.nulls[null]))
            shown = dict.fromkeys(("mismatched", "constant_context", best))
            sizes = {m.n for m in rung.nulls.values()}
            each = "" if len(sizes) == 1 else " of {n}"
            words = [
                f"{NULL_NAMES.get(n, n)} {rung.nulls[n].k}{each.format(n=rung.nulls[n].n)}"
                for n in shown
                if n in rung.nulls
            ]
            compared = ("" if each else f"of {sizes.pop()}: ") + ", ".join(words) + f" ({len(rung.nulls)} nulls)"
        rows.append((f"{name.replace('_', ' ')}\n{depth}".rstrip(), measured, compared))
    return rows


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
