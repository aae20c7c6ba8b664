"""Pictures of panel and report for the README: python scripts/screenshots.py RUN_FOLDER [--out docs/images]

Writes panel.svg (by rich), report.png, report-dark.png and report-grids.png (by the system's Chromium, headless) from a
run's folder or a session's, such as runs/experiment. Exit status 2 where there is no run or no Chromium.
"""

import argparse
import io
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from etrm.errors import EtrmError  # noqa: E402  (the repository need not be installed)
from etrm.experiment.panel import render_panel  # noqa: E402
from etrm.experiment.report import open_runs, write_report  # noqa: E402

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
DARK = "--blink-settings=preferredColorScheme=0"
WIDTH = 110
# name, width, height, part of the page ("" is its top), more flags
SHOTS = (
    ("report.png", 1100, 1000, "", ()),
    ("report-dark.png", 1100, 1000, "curves", (DARK,)),
    ("report-grids.png", 1100, 760, "grids", ()),
)


def panel(run: Path, out: Path) -> None:
    """The terminal's panel as SVG."""
    verdicts = {r.arm: r.verdict for r in open_runs(run) if r.verdict is not None}
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    console.print(render_panel(verdicts, f"{run}/report.html", WIDTH))
    console.save_svg(str(out / "panel.svg"), title="make experiment", unique_id="panel")


def shots(run: Path, out: Path, browser: str) -> None:
    """The report's pictures; of a part, what lies before it is hidden, since a picture starts at the top."""
    with tempfile.TemporaryDirectory() as folder:
        page = write_report(run, Path(folder) / "report.html").read_text()
        for name, width, height, part, flags in SHOTS:
            hide = {
                "": "",
                "curves": "header, nav, section.verdict, section.verdict + section { display: none } "
                "article section { margin-top: 1rem }",
                "grids": "header, nav, article[id] { display: none }",
            }[part]
            shown = Path(folder) / "shown.html"
            shown.write_text(page.replace("</head>", f"<style>{hide}</style></head>"))
            subprocess.run(
                [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", *flags,
                 f"--user-data-dir={folder}/profile", f"--window-size={width},{height}",
                 f"--screenshot={out / name}", shown.as_uri()],
                check=True, capture_output=True, timeout=300,
            )  # fmt: skip


def main() -> int:
    """Write all pictures and print where."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images")
    options = parser.parse_args()
    browser = next((found for name in CHROMIUM if (found := shutil.which(name))), None)
    if browser is None:
        print(f"no {', '.join(CHROMIUM)} on PATH; on Debian or Ubuntu: apt install chromium", file=sys.stderr)
        return 2
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    try:
        panel(options.run, out)
        shots(options.run, out, browser)
    except EtrmError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    print("\n".join(str(path) for path in sorted(out.iterdir())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
