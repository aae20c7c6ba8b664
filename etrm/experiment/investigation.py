"""docs/etrm-low-performance-investigation.md, generated from a run's verdict.json so that it cannot go stale.

`python -m etrm.experiment.investigation runs/experiment/verdict.json` writes it. The document carries a fingerprint of
what it was made from (each arm's config and bundle); a test compares it with the repository's, so a changed config or
bundle asks for a new run.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from etrm.config.compose import load, to_dict
from etrm.config.schema import RunConfig
from etrm.errors import EtrmError, EvaluationError
from etrm.experiment.attribution import HYPOTHESES
from etrm.experiment.certificate import commit
from etrm.experiment.verdict_schema import validate_json
from etrm.models.bundle import bundle_folder

DOCUMENT = Path("docs/etrm-low-performance-investigation.md")
TESTS = {
    "H1": ("test_h1_decoder_loading.py", "whole, golden logits, structure, competence, bitwise unchanged"),
    "H2": ("test_h2_gradient_flow.py", "every parameter, sample and token, against finite differences"),
    "H3": ("test_h3_context.py", "shape, scale and active tokens against the decoder's own contexts, diversity"),
    "H4": ("test_h4_optimisation.py", "budget, schedule, paired loss decrease; learning-rate sweep under `-m sweep`"),
    "H5": ("test_h5_dataset.py", "disjoint by canonical hash, provenance, enough tasks"),
    "H6": ("test_h6_pass_at_1.py", "every query once, nulls on the same queries, intervals by task, certificate"),
    "H7": ("test_h7_encoder_capacity.py", "oracles; width, depth and kind under `-m sweep`"),
}
ANSWERS = {
    "supported": "supported: something that belongs to it failed",
    "refuted": "refuted: all of it was measured and is in order",
    "open": "open: not all measured, or not tellable",
}


def fingerprint(arms: Sequence[str], root: Path = Path("config")) -> dict[str, str]:
    """By arm: the sha256 (16 hex digits) of its resolved config and of its bundle's manifest."""
    found = {}
    for arm in arms:
        config = load(RunConfig, f"cfg_{arm}", [], root)
        manifest = (bundle_folder(config.bundle) / "manifest.json").read_bytes()
        text = json.dumps(to_dict(config), sort_keys=True).encode()
        found[arm] = hashlib.sha256(text + manifest).hexdigest()[:16]
    return found


def written_fingerprint(document: str) -> dict[str, str]:
    """The fingerprint that a generated document carries; EvaluationError if it carries none."""
    for line in document.splitlines():
        if line.startswith("<!-- made from ") and line.endswith(" -->"):
            found: dict[str, str] = json.loads(line.removeprefix("<!-- made from ").removesuffix(" -->"))
            return found
    raise EvaluationError(
        "the document carries no fingerprint; make it with: python -m etrm.experiment.investigation VERDICT_JSON"
    )


def render(verdict: Mapping[str, Any], prints: Mapping[str, str]) -> str:
    """The document as markdown. Raises EvaluationError if `verdict` is not of the schema."""
    validate_json(verdict)
    arms: Mapping[str, Any] = verdict["arms"]
    lines = [
        "# Why does an ETRM perform badly? Seven hypotheses and their evidence",
        "",
        f"<!-- made from {json.dumps(dict(prints), sort_keys=True)} -->",
        f"Generated on {date.today().isoformat()} at commit {commit()} by `python -m etrm.experiment.investigation "
        "runs/experiment/verdict.json`; do not edit by hand.",
        "",
        "Each hypothesis says *this is what holds the encoder back*. Its status is read from the last full run of each "
        "arm, by the rules of [verdict.md](verdict.md).",
        "",
        "| arm | scenario | why |",
        "| --- | --- | --- |",
        *(f"| {arm} | **{body['scenario']}** | {_cell(body['reasons'][0])} |" for arm, body in arms.items()),
        "",
        "| | hypothesis | " + " | ".join(arms) + " |",
        "| --- | --- |" + " --- |" * len(arms),
    ]
    for name, says in HYPOTHESES.items():
        words = [body["hypotheses"].get(name, {"status": "open"})["status"] for body in arms.values()]
        lines.append(f"| {name} | {says} | " + " | ".join(words) + " |")
    for name, says in HYPOTHESES.items():
        file, what = TESTS[name]
        lines += ["", f"## {name}: {says}", "", f"Test: `tests/experiments/{file}` ({what})."]
        for arm, body in arms.items():
            found = body["hypotheses"].get(name)
            status = ANSWERS[found["status"]] if found else ANSWERS["open"]
            lines += ["", f"**{arm}**: {status}."]
            lines += [f"- {text}" for text in (found["evidence"] if found else ["no evidence in this run"])]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def main(arguments: list[str] | None = None) -> int:
    """Write the document."""
    parser = argparse.ArgumentParser(prog="python -m etrm.experiment.investigation", description=__doc__)
    parser.add_argument("verdict", type=Path, help="verdict.json of a full run")
    parser.add_argument("--out", type=Path, default=DOCUMENT)
    options = parser.parse_args(arguments)
    try:
        verdict = json.loads(options.verdict.read_text())
        text = render(verdict, fingerprint(tuple(verdict["arms"])))
    except (OSError, ValueError, KeyError, TypeError) as error:
        print(f"{options.verdict} is no verdict: {error}; run `make experiment` first", file=sys.stderr)
        return 2
    except EtrmError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    options.out.write_text(text)
    print(f"wrote {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
