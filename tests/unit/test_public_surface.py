"""Freezes what users build on: markers, options, exit codes. A change here needs a line in CHANGELOG.md."""

import configparser
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import etrm
from etrm.experiment.run_cache import REQUIRED_PARTS
from etrm.experiment.session import EXIT_CODES

pytestmark = pytest.mark.fast

ROOT = Path(__file__).resolve().parents[2]


def test_markers():
    ini = configparser.ConfigParser()
    ini.read(ROOT / "pytest.ini")
    described = dict(line.split(": ", 1) for line in ini["pytest"]["markers"].strip().splitlines())
    assert sorted(described) == sorted(
        [
            "fast",
            "thorough",
            "frozen_decoder",
            "slow",
            "calibration",
            "arc",
            "faults",
            "seeds",
            "sweep",
            "benchmark",
            "gpu",
        ]
    )
    assert all(len(text) > 20 for text in described.values())
    assert {"--strict-markers", "--strict-config"} <= set(ini["pytest"]["addopts"].split())
    assert ini["pytest"]["filterwarnings"].split("\n")[1] == "error"


def test_options(pytester):
    pytester.makeconftest((ROOT / "conftest.py").read_text())
    shown = pytester.runpytest_inprocess("--help").stdout.str()
    group = re.search(r"^frozen-decoder experiment:\n(.*?)\n\n", shown, re.DOTALL | re.MULTILINE)
    assert group is not None
    assert re.findall(r"^  (--[a-z-]+)", group[1], re.MULTILINE) == [
        "--slow",
        "--fresh",
        "--encoder",
        "--verdict-json",
        "--seeds",
        "--run-name",
        "--require-gpu",
    ]


def test_exit_codes():
    assert {code: text.split(":")[0] for code, text in EXIT_CODES.items()} == {
        0: "every selected assertion holds",
        1: "at least one assertion failed",
        2: "interrupted",
        3: "internal error",
        4: "wrong command line",
        5: "no test was selected",
        10: "UNDECIDED",
        11: "INVALID",
    }
    contributing = (ROOT / "CONTRIBUTING.md").read_text()
    assert [code for code in EXIT_CODES if f"| {code} |" not in contributing] == []


def test_run_key_parts():
    assert REQUIRED_PARTS == ("sources", "config", "bundle", "encoder", "torch", "threads", "seed")


def test_package_metadata():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["pytest11"] == {"etrm": "etrm.pytest_plugin"}
    assert sorted(project["optional-dependencies"]) == ["docs", "official", "tensorboard", "test", "wandb"]
    assert project["scripts"] == {"etrm": "etrm.cli.main:main"}
    assert (
        f"## [{etrm.__version__}]" in (ROOT / "CHANGELOG.md").read_text()
        or "[Unreleased]" in (ROOT / "CHANGELOG.md").read_text()
    )


def test_every_dependency_is_pinned():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["test"]]
    pins = {
        line.split("==")[0].lower()
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if not line.startswith("#")
    }
    assert [name for name in wanted if re.split(r"[<>=]", name)[0].lower() not in pins] == []


def test_importing_the_package_imports_no_torch():
    code = "import sys, etrm, etrm.experiment.run_cache, etrm.experiment.session; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 0
