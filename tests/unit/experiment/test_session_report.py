"""What a session with finished arms prints and leaves: seen from outside, with the repository's own conftest.py."""

import json
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from etrm.experiment.demo_evidence import demo_evidence
from etrm.experiment.session_report import SessionRuns, markdown
from etrm.experiment.verdict import judge, validate_json

pytestmark = pytest.mark.fast
ROOT = Path(__file__).resolve().parents[3]
SOURCE = """
    from dataclasses import dataclass
    from pathlib import Path
    import pytest
    from etrm.experiment.demo_evidence import demo_evidence
    from etrm.experiment.evidence import Evidence

    @dataclass
    class ArmRun:
        evidence: Evidence
        folder: Path

    def arm(name, scenario):
        folder = Path(name + "-run")
        folder.mkdir()
        evidence = demo_evidence(scenario, name)
        (folder / "evidence.json").write_text(evidence.dumps())
        return ArmRun(evidence, folder)

    @pytest.fixture(scope="session", params=["calibration", "arc"])
    def arm_run(request, session_runs):
        run = arm(request.param, {"calibration": "A", "arc": "C"}[request.param])
        session_runs.note(request.param, run)
        return run

    def test_fits(arm_run): pass
    def test_other(): pass
"""


@pytest.fixture
def session(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Callable[..., pytest.RunResult]:
    """Run pytest on SOURCE with the repository's conftest.py and pytest.ini."""
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(pytester.path / "summary.md"))
    pytester.makeconftest((ROOT / "conftest.py").read_text())
    pytester.makefile(".ini", pytest=(ROOT / "pytest.ini").read_text())
    path = pytester.makepyfile(SOURCE)
    return lambda *arguments: pytester.runpytest_inprocess(
        path, "-p", "no:cacheprovider", "-p", "no:randomly", *arguments
    )


def test_a_full_session_leaves_everything(session: Callable[..., pytest.RunResult], pytester: pytest.Pytester) -> None:
    result = session("--slow", "--junitxml=junit.xml", "--run-name=trial", "--verdict-json=kept/verdict.json")
    result.assert_outcomes(passed=3)
    result.stdout.fnmatch_lines(["calibration: A: yes*", "arc: C: no*", "files: runs/trial/report.html"])
    out = pytester.path / "runs" / "trial"
    assert {p.name for p in out.iterdir()} == {"verdict.json", "report.html", "calibration", "arc"}
    document = json.loads((out / "verdict.json").read_text())
    validate_json(document)
    assert document == json.loads((pytester.path / "kept" / "verdict.json").read_text())
    summary = (pytester.path / "summary.md").read_text()
    assert "### calibration: A: It learns" in summary and "runs/trial/report.html" in summary


def test_junit_says_scenario_and_rungs(session: Callable[..., pytest.RunResult], pytester: pytest.Pytester) -> None:
    session("--slow", "--junitxml=junit.xml")
    suite = ET.parse(pytester.path / "junit.xml").getroot()[0]

    def properties(of: ET.Element) -> dict[str, str]:
        return {p.attrib["name"]: p.attrib["value"] for p in of.iterfind("properties/property")}

    whole = properties(suite)
    assert whole["calibration.scenario"] == "A" and whole["arc.scenario"] == "C"
    assert whole["calibration.unseen_composition"] == "307 of 512 (60 % [52 %, 67 %])"
    cases = {case.attrib["name"]: properties(case) for case in suite.iterfind("testcase")}
    assert {k.split(".")[0] for k in cases["test_fits[calibration]"]} == {"calibration"}
    assert cases["test_fits[arc]"]["arc.unseen_task"].startswith("3 of 512") and cases["test_other"] == {}


def test_a_short_session_claims_no_verdict(session: Callable[..., pytest.RunResult], pytester: pytest.Pytester) -> None:
    result = session()
    assert not (pytester.path / "runs").exists() and not (pytester.path / "summary.md").exists()
    assert "report" not in result.stdout.str()


def test_quiet_is_a_line_an_arm(session: Callable[..., pytest.RunResult]) -> None:
    lines = session("--slow", "-q").outlines
    shown = [line for line in lines if line.startswith(("calibration", "arc", "report", "  "))]
    assert len(shown) == 3 and shown[2] == "report: runs/experiment/report.html"


def test_markdown_cells_cannot_be_broken() -> None:
    good = demo_evidence("A")
    odd = replace(good, gradient=replace(good.gradient, detail="a | b <img>"))
    text = markdown({"calibration": judge(odd)}, "r.html")
    assert "a \\| b &lt;img>" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) > 5 and all(row.replace("\\|", "").count("|") == 4 for row in rows)
    assert "✓ valid? ✓ gradient?" in text and "Certificate of 2026-02-01" in text


def test_only_runs_under_an_arms_name_are_kept() -> None:
    runs = SessionRuns()
    run = type("Run", (), {"evidence": demo_evidence("A"), "folder": Path()})()
    for name, value in (("tmp_path", run), ("arc", 5), ("arc", None)):
        runs.note(name, value)
    assert runs.verdicts == {}
    runs.note("calibration", run)
    assert list(runs.verdicts) == ["calibration"] and runs.properties(("arc",)) == []
