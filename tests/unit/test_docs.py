"""The docs' code runs, their exit codes are the session's, and no page of the site is missing or lost."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from etrm.experiment.checks import CHECK_RULES
from etrm.experiment.report.run_folder import RECORD_FILES
from etrm.experiment.session import EXIT_CODES
from etrm.models.bundle import load_bundle
from etrm.models.encoders import encode

pytestmark = pytest.mark.fast
ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"


def test_the_encoder_of_the_docs_keeps_the_contract() -> None:
    code = re.search(r"```python\n(.*?)```", (DOCS / "bring-your-own-encoder.md").read_text(), re.DOTALL)
    assert code is not None
    names: dict[str, Any] = {}
    exec(code[1], names)
    spec = load_bundle("micro").spec()
    torch.manual_seed(0)
    encoder = names["make"](spec).eval()
    grids = torch.randint(2, 12, (2, 3, spec.seq_len))
    mask = torch.tensor([[True, True, True], [True, True, False]])
    context = encode(encoder, spec, grids, grids.flip(0), mask).context
    assert context.shape == (2, spec.context_tokens, spec.hidden_size)
    other = grids.clone()
    other[1, 2] = 2  # a masked slot
    again = encode(encoder, spec, other, grids.flip(0), mask).context
    assert torch.allclose(context[1], again[1], atol=1e-6)


def test_exit_codes_of_the_docs() -> None:
    table = (DOCS / "exit-codes.md").read_text()
    rows = dict(re.findall(r"^\| (\d+) \| ([^|]+?) \|", table, re.MULTILINE))
    assert {code: rows[str(code)] for code in EXIT_CODES} == dict(EXIT_CODES)


def test_the_verdicts_page_lists_every_check_with_its_rule() -> None:
    rows = re.findall(r"^\| (\w+) \| [^|]+ \| (H\d) \| (\w+) \| (yes|no) \|$", (DOCS / "verdict.md").read_text(), re.M)
    stages = {"yes": "start", "no": "outcome"}
    assert [(name, h, fails, stages[needed]) for name, h, fails, needed in rows] == [
        (name, rule.hypothesis, rule.on_failure, rule.stage) for name, rule in CHECK_RULES.items()
    ]


def test_every_page_is_in_the_navigation_and_every_link_leads_somewhere() -> None:
    pages = {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")}
    listed = set(re.findall(r": ([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    assert listed == pages and yaml.safe_load((ROOT / "mkdocs.yml").read_text())["strict"] is True
    for page in (*(DOCS / name for name in pages), ROOT / "README.md"):
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page}: {link}"


def test_the_files_of_a_run_are_described() -> None:
    text = (DOCS / "read-the-report.md").read_text()
    assert [name for name in RECORD_FILES if f"| `{name}` |" not in text] == []
