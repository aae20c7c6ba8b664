"""What a session leaves behind of its finished arms: panel, verdict.json, report.html, CI summary, JUnit properties.

Notable: an arm's run is told by one call, `session_runs.note(arm, run)`, with anything that has `evidence` and
`folder`; so a test needs to know nothing of all this. Only a full run (--slow) has a verdict to show: a short one
evaluates no pass@1.
Knows neither torch nor pytest: conftest.py is the glue.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import RenderableType

from etrm.experiment.evidence import RUNGS, Evidence
from etrm.experiment.panel import figures, plain, render_panel, short, why
from etrm.experiment.report.publish import publish
from etrm.experiment.verdict import Verdict, judge, to_json
from etrm.experiment.wording import HEADLINE, MEANING, SIGN, questions

SUMMARY_VARIABLE = "GITHUB_STEP_SUMMARY"


@dataclass
class SessionRuns:
    """The arms that this session ran or reused."""

    verdicts: dict[str, Verdict] = field(default_factory=dict)
    folders: dict[str, Path] = field(default_factory=dict)
    report: Path | None = None

    def note(self, name: str, value: object) -> None:
        """Keep a value if it is an arm's run under the arm's name; everything else is none of ours."""
        evidence, folder = getattr(value, "evidence", None), getattr(value, "folder", None)
        if name in RUNGS and isinstance(evidence, Evidence) and isinstance(folder, Path):
            self.verdicts[name], self.folders[name] = judge(evidence), folder

    def properties(self, arms: tuple[str, ...] | None = None) -> list[tuple[str, str]]:
        """JUnit properties of these arms (None: all): scenario, question, confidence, and each rung's counts."""
        chosen = {arm: v for arm, v in self.verdicts.items() if arms is None or arm in arms}
        return [pair for arm, verdict in chosen.items() for pair in _properties(arm, verdict)]

    def publish(self, out: Path, verdict_json: Path | None, summary: Path | None) -> None:
        """Write runs/<name>/ (records, verdict.json, report.html), --verdict-json, and append to the CI summary."""
        if not self.verdicts:
            return
        self.report = publish(out, self.verdicts, self.folders)
        if verdict_json is not None:
            verdict_json.parent.mkdir(parents=True, exist_ok=True)
            verdict_json.write_text(json.dumps(to_json(self.verdicts), indent=1) + "\n")
        if summary is not None:
            with summary.open("a", encoding="utf-8") as file:
                file.write(markdown(self.verdicts, str(self.report)))

    def shown(self, width: int, colour: bool, quiet: bool) -> RenderableType:
        """The panel on a terminal, plain lines in a log, a line an arm where quiet was asked."""
        if quiet:
            lines = [f"{arm}: {v.scenario}: {MEANING[v.scenario]}" for arm, v in self.verdicts.items()]
            return "\n".join([*lines, f"report: {self.report}"])
        if colour:
            return render_panel(self.verdicts, str(self.report), width)
        return plain(self.verdicts, str(self.report))


def _properties(arm: str, verdict: Verdict) -> list[tuple[str, str]]:
    found = [
        (f"{arm}.scenario", verdict.scenario),
        (f"{arm}.question", str(verdict.question)),
        (f"{arm}.confidence", verdict.confidence),
        (f"{arm}.gradient", verdict.gradient or "not measured"),
    ]
    for name in RUNGS[verdict.evidence.arm]:
        rung = verdict.evidence.rung(name)
        found.append((f"{arm}.{name}", "not evaluated" if rung is None else short(rung.score)))
    return found


def markdown(verdicts: Mapping[str, Verdict], report: str) -> str:
    """The verdict for a CI job's summary page: a heading, one sentence and a table for each arm."""
    lines = ["## Can this encoder drive this frozen decoder?", ""]
    for arm, verdict in verdicts.items():
        lines += [f"### {arm}: {verdict.scenario}: {HEADLINE[verdict.scenario]}", "", MEANING[verdict.scenario], ""]
        lines += [" ".join(f"{SIGN[q.state]} {q.short}" for q in questions(verdict)), ""]
        lines += [f"**Why:** {_cell(reason)}" for reason in why(verdict)]
        lines += ["", "| figure | measured | compared with |", "| --- | --- | --- |"]
        lines += [f"| {' | '.join(_cell(cell) for cell in row)} |" for row in figures(verdict)]
        lines += [""]
        lines += [f"Next: {_cell(step.why)}: `{step.command}`" for step in verdict.next_steps[:1]]
        if verdict.evidence.certificate is not None:
            cert = verdict.evidence.certificate
            lines += ["", f"Certificate of {cert.date}, commit {cert.commit}: {_cell(cert.says)}"]
        lines += [""]
    return "\n".join([*lines, f"Report: `{report}` (a file of this job; keep it as an artifact)", ""])


def _cell(text: str) -> str:
    """Text that neither ends a table's cell nor starts a tag."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
