"""`python -m etrm.probes`: table, breaks and exit code for a config and for an encoder file."""

import subprocess
import sys

import pytest

from etrm.experiment.gradient_check import main

pytestmark = pytest.mark.thorough
SMALL = ["encoder.hidden_size=16", "encoder.name=correspondence"]
ENCODER = """
import torch
from torch import nn

class Mine(nn.Module):
    def __init__(self, spec):
        super().__init__()
        self.table = nn.Embedding(spec.vocab_size, spec.hidden_size)
        self.tokens = spec.context_tokens

    def forward(self, demo_inputs, demo_labels, demo_mask):
        h = self.table(demo_labels).mean((1, 2))
        with torch.no_grad():
            h = h * 2
        return h[:, None].expand(-1, self.tokens, -1)

def make(spec):
    return Mine(spec)
"""


def test_a_healthy_config_prints_its_layers_and_exits_with_0(capsys):
    assert main(["--config-name", "cfg_micro", *SMALL]) == 0
    text = capsys.readouterr().out
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.endswith("  ok")}
    assert {"read", "blocks.0.mlp.down_proj", "to_context"} <= set(rows), text
    assert all(float(row[0]) > 0 for row in rows.values())
    assert "No gradient break" in text and "declared as 'carry'" in text and "gradient intact" in text


def test_a_broken_encoder_file_prints_the_line_and_exits_with_1(tmp_path, capsys):
    file = tmp_path / "theirs.py"
    file.write_text(ENCODER)
    assert main(["--encoder", f"{file}:make"]) == 1
    text = capsys.readouterr().out
    line = ENCODER.splitlines().index("        with torch.no_grad():") + 1
    assert f"{file}:{line}  with torch.no_grad():" in text
    assert "gradient blocked" in text and "  cut" in text
    assert main(["--encoder", f"{file}:make", "--no-audit", "--samples", "2"]) == 1
    assert "not asked" in capsys.readouterr().out


def test_what_cannot_be_asked_exits_with_2_and_one_sentence(capsys):
    assert main(["--config-name", "cfg_nowhere"]) == 2
    assert "ConfigError: no config 'cfg_nowhere'" in capsys.readouterr().err
    assert main(["--encoder", "nowhere.py:make"]) == 2
    assert "does not exist" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_itself():
    found = subprocess.run([sys.executable, "-m", "etrm.probes", "--help"], capture_output=True, text=True, check=False)
    assert found.returncode == 0 and "--config-name" in found.stdout, found.stderr
