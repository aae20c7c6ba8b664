"""The report in a real browser: opens from disk without console error or network request, accessible, by keyboard.

Notable: driven over Chromium's own command line, so no driver and no library is needed: a script is written into a copy
of the page, runs in it, and leaves its findings in the DOM that --dump-dom prints. Requests are read from Chromium's
own log of its network stack. Skipped, with the reason, where there is no Chromium. axe-core: see tests/data/axe-core.
"""

import html as entities
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from etrm.experiment.report import write_comparison, write_report

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((found for name in NAMES if (found := shutil.which(name))), None)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason=f"no {', '.join(NAMES)} on PATH; on Debian or Ubuntu: apt install chromium"
)
AXE = Path(__file__).resolve().parents[3] / "data" / "axe-core" / "axe.min.js"
SERIOUS = ("serious", "critical")
RUN_AXE = (
    AXE.read_text().replace("</script", "<\\/script")
    + """
;document.querySelectorAll("details").forEach((d) => { d.open = true; });
axe.run({ resultTypes: ["violations"] }).then((r) => told(r.violations.map((v) =>
  ({ id: v.id, impact: v.impact, nodes: v.nodes.slice(0, 3).map((n) => n.html + " " + n.failureSummary) }))));
"""
)
TELL = """
const told = (value) => { const p = document.createElement("pre"); p.id = "told"; p.textContent = JSON.stringify(value);
  document.body.append(p); };
"""


def script(name: str) -> str:
    """The script beside this file."""
    return Path(__file__).with_name(f"{name}.js").read_text()


class Visit:
    """What came of opening a page: the script's findings, the console's lines, the hosts asked."""

    def __init__(self, page: Path, script: str, *flags: str) -> None:
        copy = page.with_name(f"visited-{page.name}")
        copy.write_text(page.read_text().replace("</body>", f"<script>{TELL}{script}</script></body>"))
        log = page.with_name("net.json")
        assert CHROMIUM is not None
        done = subprocess.run(
            [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
             "--disable-background-networking", "--disable-component-update", "--no-first-run", "--disable-sync",
             f"--user-data-dir={page.parent / 'profile'}", "--enable-logging=stderr", f"--log-net-log={log}",
             "--virtual-time-budget=20000", *flags, "--dump-dom", copy.as_uri()],
            capture_output=True, text=True, timeout=300, check=True,
        )  # fmt: skip
        found = re.search(r'<pre id="told">(.*?)</pre>', done.stdout, re.DOTALL)
        assert found is not None, f"the page's script told nothing: {done.stderr[-800:]}"
        self.told: Any = json.loads(entities.unescape(found[1]))
        self.console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
        self.requests = page_requests(json.loads(log.read_text()))


def page_requests(log: dict[str, Any]) -> list[str]:
    """Requests to a network that the page made; Chromium's own (updates, time) have no origin as initiator."""
    made = [event.get("params", {}) for event in log["events"]]
    asked = [p["url"] for p in made if "url" in p and p.get("initiator", "not an origin") != "not an origin"]
    return sorted({url for url in asked if not url.startswith(("file:", "data:", "about:"))})


@pytest.fixture(scope="module")
def page(write_run: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a session's two arms, with enough queries for two screens of them."""
    folder = tmp_path_factory.mktemp("session")
    write_run(folder / "calibration", "A", shown=40)
    write_run(folder / "arc", "B", "arc", shown=4, side=12)
    return write_report(folder)


def test_opens_from_disk_without_console_error_or_request(page: Path) -> None:
    visit = Visit(page, "told([document.title, document.querySelectorAll('.card').length]);")
    assert visit.told == ["A (calibration), B (arc) · session0 · etrm", 12]
    assert visit.console == [] and visit.requests == []


def test_an_error_and_a_request_would_be_seen(page: Path) -> None:
    """The measuring itself: the CSP blocks a request and says so on the console; without it, the request is logged."""
    ask = "new Image().src = 'http://192.0.2.1/x.png'; told(1);"
    assert any("Content Security Policy" in line for line in Visit(page, ask).console)
    bare = page.with_name("bare.html")
    bare.write_text(re.sub(r"<meta http-equiv[^>]+>", "", page.read_text()))
    assert Visit(bare, ask).requests == ["http://192.0.2.1/x.png"]
    assert any("planted" in line for line in Visit(page, "console.error('planted'); told(1);").console)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(page: Path, scheme: str) -> None:
    dark = ["--blink-settings=preferredColorScheme=0"] if scheme == "dark" else []
    visit = Visit(page, RUN_AXE, *dark)
    assert [v for v in visit.told if v["impact"] in SERIOUS] == []


def test_axe_would_find_a_planted_problem(page: Path) -> None:
    planted = "document.querySelector('#outcome').closest('label').replaceWith(document.querySelector('#outcome'));"
    assert "select-name" in {v["id"] for v in Visit(page, planted + RUN_AXE).told if v["impact"] in SERIOUS}


def test_axe_finds_nothing_serious_in_a_comparison(page: Path) -> None:
    made = write_comparison([page.parent / "calibration", page.parent / "arc"], page.with_name("compare.html"))
    visit = Visit(made, RUN_AXE)
    assert [v for v in visit.told if v["impact"] in SERIOUS] == [] and visit.console == []


def test_filters_and_more_button(page: Path) -> None:
    visit = Visit(page, script("filters"))
    assert visit.told == {
        "first": 12, "more": 24, "focused": 12, "failed": True, "framed": True, "framed_when_solved": 0,
        "count": "16 of 44 shown queries match, 16 of them solved.", "rung": 2, "task": True, "digits_off": 0,
        "digits_on": True,
    }  # fmt: skip
    assert visit.console == []


def test_everything_that_acts_is_reached_by_keyboard(page: Path) -> None:
    told = Visit(page, script("keyboard")).told
    assert told["deaf"] == [] and told["acting"] > 20


def test_a_phone_scrolls_in_one_direction_only(page: Path) -> None:
    frame = page.with_name("phone.html")
    inner = entities.escape(page.read_text(), quote=True)
    frame.write_text(
        f'<html><body><iframe id="phone" width="360" height="700" srcdoc="{inner}"></iframe></body></html>'
    )
    width, needed = Visit(frame, script("phone")).told
    assert width == 360 and needed <= width
