"""The instrument on the toy bundle: planted faults get their verdict, and a healthy encoder none of them."""

import dataclasses
import json
import shutil

import pytest
import torch

from etrm.config.compose import load
from etrm.config.schema import RunConfig
from etrm.experiment.frozen_decoder import FrozenDecoderRun
from etrm.experiment.verdict import judge
from etrm.models.bundle import ASSETS
from etrm.models.encoders import Encoded

pytestmark = [pytest.mark.thorough, pytest.mark.faults]

SHORT = ["budget.updates=100", "optim.warmup_updates=10", "budget.evaluations=2", "budget.log_every=25"]


def run(folder, overrides=(), edit=None):
    config = load(RunConfig, "cfg_micro", [*SHORT, *overrides])
    experiment = FrozenDecoderRun(config, "short", folder, edit=edit)
    return experiment.run(), experiment.record


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    """One healthy run, read by every test that plants nothing: its folder, evidence and record."""
    folder = tmp_path_factory.mktemp("healthy")
    return folder, *run(folder)


def test_a_healthy_encoder_has_an_intact_gradient_a_frozen_decoder_and_a_falling_loss(healthy):
    _, evidence, record = healthy
    assert evidence.gradient.state == "intact", evidence.gradient
    failed = [c for c in evidence.validity if c.ok is False]
    assert not failed, failed
    assert record.probe["end"] < record.probe["start"] and record.probe["p_decrease"] < 0.01, record.probe
    assert judge(evidence).scenario not in ("B", "C", "INVALID")


def test_a_detached_context_is_scenario_b_before_training(tmp_path):
    def detach(head):
        whole = head.model.context
        head.model.context = lambda episodes: Encoded(whole(episodes).context.detach(), {})

    evidence, _ = run(tmp_path, edit=detach)
    assert evidence.gradient.state == "blocked", evidence.gradient
    verdict = judge(evidence)
    assert verdict.scenario == "B", verdict.reasons
    assert evidence.budget.executed_updates == 0 and evidence.budget.early_stop


def test_samples_without_gradient_are_scenario_b(tmp_path):
    def starve(head):
        whole = head.model.context

        def first_half_only(episodes):
            context = whole(episodes).context
            half = len(context) // 2
            return Encoded(torch.cat((context[:half], context[half:].detach())), {})

        head.model.context = first_half_only

    evidence, _ = run(tmp_path, edit=starve)
    assert evidence.gradient.state == "partial", evidence.gradient
    assert judge(evidence).scenario == "B"


def test_one_context_token_without_gradient_is_scenario_b(tmp_path):
    def cut_token(head):
        whole = head.model.context

        def all_but_one(episodes):
            context = whole(episodes).context
            return Encoded(torch.cat((context[:, :1], context[:, 1:].detach()), dim=1), {})

        head.model.context = all_but_one

    evidence, _ = run(tmp_path, edit=cut_token)
    assert evidence.gradient.state == "partial", evidence.gradient
    assert judge(evidence).scenario == "B"


@pytest.mark.parametrize("field", ["l_cycles", "h_cycles"])
def test_a_decoder_with_other_cycles_is_invalid_before_training(tmp_path, field):
    folder = tmp_path / "altered"
    shutil.copytree(ASSETS / "micro", folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["structure"][field] += 2
    (folder / "manifest.json").write_text(json.dumps(manifest))
    evidence, record = run(tmp_path / "run", [f"bundle={folder}"])
    verdict = judge(evidence)
    assert verdict.scenario == "INVALID", verdict.reasons
    assert not record.curve, "it was trained"


def test_a_decoder_that_moves_is_invalid(tmp_path):
    def drift(head):
        whole, weight = head.model.context, head.decoder.lm_head.weight

        def nudging(episodes):
            weight.data.add_(1e-7)
            return whole(episodes)

        head.model.context = nudging

    evidence, _ = run(tmp_path, ["budget.updates=20", "optim.warmup_updates=2", "budget.log_every=5"], edit=drift)
    moved = next(c for c in evidence.validity if c.name == "decoder_unchanged")
    assert moved.ok is False and "lm_head" in moved.detail, moved
    assert judge(evidence).scenario == "INVALID"


def test_a_context_with_nan_is_invalid(tmp_path):
    source = tmp_path / "nan_encoder.py"
    source.write_text(
        "import torch\n"
        "class Bad(torch.nn.Module):\n"
        "    def __init__(self, spec):\n"
        "        super().__init__()\n"
        "        self.value = torch.nn.Parameter(torch.full((spec.context_tokens, spec.hidden_size), float('nan')))\n"
        "    def forward(self, demo_inputs, demo_labels, demo_mask):\n"
        "        return self.value.expand(len(demo_mask), -1, -1)\n"
        "def make(spec):\n"
        "    return Bad(spec)\n"
    )
    evidence, _ = run(tmp_path / "run", [f"encoder.name={source}:make"])
    verdict = judge(evidence)
    assert verdict.scenario == "INVALID", verdict.reasons
    assert any("not finite" in reason for reason in verdict.reasons), verdict.reasons


def test_evidence_survives_its_file(healthy):
    folder, evidence, _ = healthy
    written = json.loads((folder / "evidence.json").read_text())
    assert type(evidence).from_json(written) == dataclasses.replace(evidence)


def test_a_decoder_that_cannot_answer_with_its_own_contexts_is_invalid(tmp_path):
    evidence, record = run(tmp_path, edit=lambda head: head.decoder.lm_head.weight.data.zero_())
    competent = next(c for c in evidence.validity if c.name == "decoder_competent")
    assert competent.ok is False and "0 of 296" in competent.detail, competent
    assert judge(evidence).scenario == "INVALID"
    assert not record.curve, "it was trained"
