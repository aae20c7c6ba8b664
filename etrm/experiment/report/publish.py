"""Keeps a session's runs beside its verdict: `runs/<name>/<arm>/`, `verdict.json` and `report.html`.

Notable: the run cache may be emptied at any time, so the files that a report needs are copied, not linked.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from etrm.experiment.report.page import write_report
from etrm.experiment.report.run_folder import RECORD_FILES
from etrm.experiment.verdict import Verdict, to_json


def publish(out: Path, verdicts: Mapping[str, Verdict], folders: Mapping[str, Path]) -> Path:
    """Copy each arm's record to `out`/<arm>, write verdict.json and report.html; returns the report's path.

    What an earlier session left of these files is replaced. Raises EvaluationError where no folder holds a run.
    """
    out.mkdir(parents=True, exist_ok=True)
    for arm, folder in folders.items():
        kept = out / arm
        kept.mkdir(exist_ok=True)
        for name in (*RECORD_FILES, "DONE.json"):
            (kept / name).unlink(missing_ok=True)
            if (folder / name).is_file():
                shutil.copyfile(folder / name, kept / name)
    (out / "verdict.json").write_text(json.dumps(to_json(verdicts), indent=1) + "\n")
    return write_report(out, out / "report.html")
