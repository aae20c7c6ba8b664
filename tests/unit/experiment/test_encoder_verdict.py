"""A person's encoder is judged under the instrument's certificate, earned once; without one it is UNDECIDED."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from etrm.config.compose import load
from etrm.config.schema import RunConfig
from etrm.experiment import certificate, encoder_verdict
from etrm.experiment.certificate import Trial, earn
from etrm.experiment.demo_evidence import demo_evidence
from etrm.experiment.evidence import Certificate
from etrm.experiment.run_cache import RunCache

HELD = Certificate("2026-02-02", "1234567", "healthy encoder gave A; planted faults gave B, C and INVALID")
OUTCOMES = ("B", "C", "INVALID")
MINE = "mine.py:make"
THEIRS = """
from etrm.config.schema import EncoderConfig
from etrm.models.encoders.correspondence import Correspondence

def make(spec):
    return Correspondence(spec, EncoderConfig("mine", 96, 4, 1, 0))
"""


class Run:
    """A stand-in for FrozenDecoderRun: invented evidence of one scenario, written where the real one writes it."""

    scenario = "A"
    encoders: ClassVar[list[str]] = []

    def __init__(self, config: RunConfig, length: str, folder: Path) -> None:
        self.name, self.folder = config.encoder.name, folder

    def run(self) -> Any:
        self.encoders.append(self.name)
        self.folder.mkdir(parents=True)
        own = replace(demo_evidence(self.scenario, "micro"), encoder=self.name, user_encoder=":" in self.name)
        own = replace(own, certificate=None, validity=tuple(c for c in own.validity if c.name != "certificate"))
        (self.folder / "evidence.json").write_text(own.dumps())
        return own


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> type[Run]:
    class Fresh(Run):
        encoders: ClassVar[list[str]] = []

    monkeypatch.setattr(certificate, "FrozenDecoderRun", Fresh)
    monkeypatch.setattr(encoder_verdict, "FrozenDecoderRun", Fresh)
    return Fresh


@pytest.fixture
def plants(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Path]]:
    """`plants(found)`: let the three planted faults give these scenarios; returns the folders they were planted in."""

    def give(*found: Any) -> list[Path]:
        asked: list[Path] = []

        def planted(config: RunConfig, bundle: object, folder: Path) -> tuple[Trial, ...]:
            asked.append(folder)
            return tuple(Trial(f"plant {e}", e, f, "planted") for e, f in zip(OUTCOMES, found, strict=True))  # type: ignore[arg-type]

        monkeypatch.setattr(certificate, "planted", planted)
        return asked

    return give


@pytest.mark.fast
def test_the_certificate_is_earned_first_and_once(tmp_path: Path, runs: type[Run], plants: Any) -> None:
    asked, cache = plants(*OUTCOMES), RunCache(tmp_path / "cache")
    for number in range(2):
        found = encoder_verdict.encoder_verdict(MINE, "micro", tmp_path / str(number), cache=cache)
        assert found.scenario == "A", found
        held = found.verdict.evidence.certificate
        assert held is not None and "healthy encoder gave A" in held.says and "plant B gave B" in held.says
        assert '"healthy encoder gave A' in (tmp_path / str(number) / "evidence.json").read_text()
    assert runs.encoders == ["cell_reader", MINE, MINE] and len(asked) == 1


@pytest.mark.fast
def test_no_certificate_is_undecided_for_that_reason_alone(tmp_path: Path, runs: type[Run], plants: Any) -> None:
    plants("B", "A", "INVALID")
    found = encoder_verdict.encoder_verdict(MINE, "micro", tmp_path / "mine", cache=RunCache(tmp_path / "cache"))
    assert found.scenario == "UNDECIDED" and len(found.reasons) == 1, found
    assert "plant C gave A instead of C" in found.reasons[0] and found.verdict.evidence.certificate is None


@pytest.mark.fast
def test_short_runs_and_registered_encoders_ask_for_none(tmp_path: Path, runs: type[Run], plants: Any) -> None:
    asked = plants(*OUTCOMES)
    encoder_verdict.encoder_verdict(MINE, "micro", tmp_path / "short", length="short")
    assert encoder_verdict.encoder_verdict("aligned", "micro", tmp_path / "ours").scenario == "A"
    assert runs.encoders == [MINE, "aligned"] and asked == []


@pytest.mark.fast
def test_a_healthy_run_that_is_not_a_earns_nothing(tmp_path: Path, runs: type[Run], plants: Any) -> None:
    plants(*OUTCOMES)
    runs.scenario = "C"
    held = earn(load(RunConfig, "cfg_micro", []), RunCache(tmp_path))
    assert isinstance(held, str) and "the healthy encoder gave C" in held


@pytest.mark.slow
def test_a_copy_of_the_default_encoder_is_an_a_under_a_certificate_earned_here(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(THEIRS)
    cache = RunCache(tmp_path / "cache")
    found = encoder_verdict.encoder_verdict(f"{tmp_path}/mine.py:make", "micro", tmp_path / "run", cache=cache)
    assert found.scenario == "A", found
    assert found.verdict.evidence.certificate is not None
