"""Runs of pretrain_etrm.py in the small: budget, claims, evaluations, freezing, resuming, and what is refused.

The decoder is the embedded micro bundle or a synthetic official checkpoint on a 9x9 canvas; runs last a few updates.
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from etrm.data.grids import PAD
from etrm.errors import CheckpointError, ConfigError, DataError, EvaluationError
from etrm.experiment import asking, pretraining
from etrm.experiment.asking import evaluate
from etrm.experiment.pretraining import Pretraining, load_run
from etrm.experiment.questions import prepare
from etrm.models.official import resolve_bundle
from etrm.training.checkpoint import read_checkpoint
from etrm.training.loop import evaluation_points, planned_updates
from etrm.training.run import budget_sentence, check_ranks, choose_device
from tests.official_samples import TINY, write_official

pytestmark = pytest.mark.thorough

SEED_CONFIG = "cfg_test_frozen_decoder"
MICRO = {
    "bundle": "micro",
    "run": "micro",
    "data.benchmark": "micro-2",
    "data.train_tasks": "0",
    "data.augmentations": "1",
    "data.max_demos": "3",
    "data.colour_augmentation": "false",
    "encoder.hidden_size": "32",
    "encoder.num_heads": "2",
    "encoder.layers": "1",
    "budget.updates": "8",
    "budget.epochs": "0",
    "budget.batch_size": "8",
    "budget.log_every": "2",
    "budget.checkpoint_every": "4",
    "optim.warmup_updates": "1",
    "optim.ema_decay": "0.5",
    "evaluation_tasks": "2",
    "evaluation.seen_queries": "1",
    "evaluation.unseen_queries": "1",
    "evaluation.probe_queries": "2",
    "system.device": "cpu",
}
OFFICIAL = {
    "run": "official",
    "data.train_tasks": "3",
    "encoder.hidden_size": "32",
    "encoder.num_heads": "2",
    "encoder.layers": "1",
    "budget.updates": "2",
    "budget.epochs": "0",
    "budget.batch_size": "4",
    "budget.log_every": "1",
    "budget.checkpoint_every": "2",
    "optim.warmup_updates": "0",
    "evaluation_tasks": "2",
    "evaluation.augmentations": "2",
    "system.device": "cpu",
}

ARC = [
    "data.benchmark=arc-agi-1",
    "evaluation.seen_queries=0",
    "evaluation.unseen_queries=0",
    "evaluation.probe_queries=0",
]


def given(overrides: dict[str, str]) -> list[str]:
    return [f"{key}={value}" for key, value in overrides.items()]


def run(
    root: Path, *overrides: str, base: dict[str, str] = MICRO, stop_after: int | None = None
) -> tuple[Pretraining, Any]:
    config, claims = load_run(SEED_CONFIG, [*given(base), *overrides])
    made = Pretraining(config, claims, root, said.append)
    return made, made.run(stop_after)


said: list[str] = []


@pytest.fixture(autouse=True)
def _quiet() -> None:
    said.clear()


def lines(made: Pretraining) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (made.folder / "metrics.jsonl").read_text().splitlines()]


def weights(made: Pretraining) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in made.state.model.state_dict().items()}


def test_the_seeds_budget_is_2500_updates() -> None:
    config, claims = load_run(SEED_CONFIG, [])
    assert claims == {}
    updates = planned_updates(config.budget, config.data.train_tasks)
    sentence = budget_sentence(config.budget, config.optim, config.data.train_tasks)
    assert sentence == "20,000 epochs x 32 tasks / 256 = 2,500 updates, warm-up 500 of them (20%)"
    assert evaluation_points(updates, config.budget.evaluations) == (1250, 2500)  # every 10,000 epochs
    assert (config.optim.lr, config.act.exploration, config.data.augmentations) == (3e-4, 0.1, 1000)
    e = config.encoder
    assert (e.name, e.hidden_size, e.num_heads, e.layers) == ("standard", 512, 8, 2)
    assert config.bundle == "./checkpoints/official_trm/arc_v1_public/step_518071"
    assert config.freeze.decoder_updates == -1


def test_a_run_leaves_what_it_promises(tmp_path: Path) -> None:
    made, summary = run(tmp_path)
    assert made.folder == tmp_path / "ETRM-FrozenDecoder-Test" / "micro"
    there = {p.name for p in made.folder.iterdir()}
    assert there == {"all_config.yaml", "manifest.json", "metrics.jsonl", "step_4", "step_8", "summary.json"}
    assert json.loads((made.folder / "summary.json").read_text()) == summary
    assert summary["budget"]["executed_updates"] == 8
    assert [e["step"] for e in summary["evaluations"]] == [4, 8]
    assert summary["evaluations"][0]["ARC/evaluated_tasks"] == 2
    assert summary["decoder"]["fate"] == "bitwise unchanged over 8 updates, in no optimiser"
    names = set(lines(made)[0])
    assert {"grad/encoder_norm", "train/lm_loss", "train/encoder_token_std", "train/encoder_output_mean"} <= names
    config = yaml.safe_load((made.folder / "all_config.yaml").read_text())
    assert (config["arch"]["L_cycles"], config["optim"]["lr"], config["run"]) == (2, 3e-4, "micro")
    assert any("8 updates x 8 / 148 tasks" in line for line in said)


def test_raw_and_averaged_weights_are_evaluated_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, torch.Tensor]] = []
    real = evaluate

    def watched(model, *rest):
        seen.append({name: p.detach().clone() for name, p in model.encoder.named_parameters()})
        return real(model, *rest)

    monkeypatch.setattr(pretraining, "evaluate", watched)
    made, summary = run(tmp_path, "budget.evaluations=1")
    assert len(seen) == 2
    assert made.state.ema is not None
    for name, p in made.model.encoder.named_parameters():
        assert torch.equal(seen[0][name], p), name  # raw, and put back afterwards
        assert torch.equal(seen[1][name], made.state.ema.shadow[f"model.encoder.{name}"]), name
    assert any(not torch.equal(seen[0][name], seen[1][name]) for name in seen[0])
    (line,) = summary["evaluations"]
    assert {"ARC/pass@1", "ARC/pass@1/raw", "ARC/pass@1/ema"} <= set(line)
    assert line["ARC/ema_initial_weight"] == 0.5**8


def test_without_an_average_the_raw_score_is_the_score(tmp_path: Path) -> None:
    _, summary = run(tmp_path, "optim.ema_decay=0.0", "budget.evaluations=1")
    assert "ARC/pass@1/ema" not in summary["evaluations"][0]


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    whole, _ = run(tmp_path / "whole")
    first, _ = run(tmp_path / "cut", stop_after=4)
    assert not (first.folder / "summary.json").exists()
    second, summary = run(tmp_path / "cut")
    assert second.state.step == 8
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(second)[name]), name
    assert lines(whole) == lines(second)
    assert [e["step"] for e in summary["evaluations"]] == [4, 8]
    third, again = run(tmp_path / "cut")  # nothing is left to do, and nothing is done twice
    assert again == summary
    assert lines(third) == lines(second)


@pytest.mark.parametrize("killed_at", [3, 5, 7])
def test_a_run_that_was_killed_at_any_moment_ends_as_if_it_had_not(tmp_path: Path, killed_at: int) -> None:
    """Evaluations at 2, 4, 6 and 8, checkpoints at 4 and 8: one evaluation stands before any checkpoint."""
    often = ("budget.evaluations=4", "budget.log_every=1")
    whole, expected = run(tmp_path / "whole", *often)
    config, claims = load_run(SEED_CONFIG, [*given(MICRO), *often])
    cut = Pretraining(config, claims, tmp_path / "cut", said.append)
    source, drawn = cut.prepared.source, []
    real = source.sample

    def sample(count, rng):
        drawn.append(count)
        if len(drawn) == killed_at:
            raise KeyboardInterrupt
        return real(count, rng)

    source.sample = sample  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        cut.run()
    assert [line["step"] for line in lines(cut) if "ARC/pass@1" in line] == list(range(2, killed_at, 2))
    again, summary = run(tmp_path / "cut", *often)
    assert lines(again) == lines(whole)
    assert summary == expected
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(again)[name]), name
    assert again.state.ema is not None
    assert whole.state.ema is not None
    assert all(torch.equal(t, again.state.ema.shadow[n]) for n, t in whole.state.ema.shadow.items())


def test_staged_training_trains_what_it_says(tmp_path: Path) -> None:
    staged = ("freeze.decoder_updates=4", "freeze.joint_lr=1e-3", "run=staged")
    before = {n: t.clone() for n, t in resolve_bundle("micro").decoder.state_dict().items()}
    made, summary = run(tmp_path, *staged)
    assert summary["decoder"]["fate"].startswith("frozen for 4 updates, then ")
    assert "no frozen-decoder experiment" in summary["verdict"]
    at4, at8 = (read_checkpoint(made.folder / f"step_{n}")["model"] for n in (4, 8))
    assert all(torch.equal(at4[f"model.decoder.{n}"], t) for n, t in before.items())
    moved = [n for n, t in before.items() if not torch.equal(at8[f"model.decoder.{n}"], t)]
    assert set(moved) == {n for n, _ in made.model.decoder.named_parameters()}
    assert not torch.equal(at4["model.encoder.to_context.weight"], at8["model.encoder.to_context.weight"])
    joined = {id(p) for g in made.state.optimizers["decoder"][0].param_groups for p in g["params"]}
    assert joined == {id(p) for p in made.model.decoder.parameters()}


@pytest.mark.parametrize("where", ["weight", "buffer", "optimiser", "requires_grad"])
def test_a_decoder_that_drifts_while_frozen_ends_the_run(tmp_path: Path, where: str) -> None:
    config, claims = load_run(SEED_CONFIG, given(MICRO))
    made = Pretraining(config, claims, tmp_path, said.append)
    decoder, source = made.model.decoder, made.prepared.source
    real = source.sample

    def drifting(count, rng):
        with torch.no_grad():
            if where == "weight":
                decoder.lm_head.weight[0, 0] += 1e-7 + decoder.lm_head.weight[0, 0].abs() * 1e-6
            elif where == "buffer":
                decoder.H_init[0] += 1e-3
        if where == "optimiser":
            made.state.optimizers["encoder"][0].param_groups[0]["params"].append(decoder.q_head.bias)
        elif where == "requires_grad":
            decoder.q_head.bias.requires_grad_(True)
        source.sample = real
        return real(count, rng)

    source.sample = drifting  # type: ignore[method-assign]
    with pytest.raises(EvaluationError, match="should be frozen until update 8, but at 4"):
        made.run()
    assert not (made.folder / "summary.json").exists()


def test_a_decoder_that_never_joins_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("etrm.training.loop.join_decoder", lambda config, state: None)
    with pytest.raises(EvaluationError, match="none of its 8 parameters moved"):
        run(tmp_path, "freeze.decoder_updates=4")


def test_perfect_answers_score_one_of_what_was_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = f"bundle={write_official(tmp_path / 'arc_v1_public')}"
    config, _ = load_run(SEED_CONFIG, [*given(OFFICIAL), bundle, "evaluation_tasks=5", "evaluation.augmentations=4"])
    loaded = resolve_bundle(config.bundle)
    questions = prepare(config, loaded).questions
    assert len(questions.task_ids) == 5
    assert len(questions.rows) > 4 * 5 - 1
    answered: list[int] = []

    class Echo(torch.nn.Module):
        decoder = loaded.decoder

        def context(self, episodes):
            self.labels = torch.where(episodes.labels < 0, PAD, episodes.labels)
            return type("Encoded", (), {"context": None})

    echo = Echo()
    monkeypatch.setattr(asking, "decode", lambda *_: (echo.labels, torch.zeros(len(echo.labels))))
    result = evaluate(echo, questions, 7, torch.device("cpu"), answered.append)  # type: ignore[arg-type]
    assert result.by_k[1].k_of_n["fraction of a task's tests"] == "5 of 5 tasks"
    assert result.votes == (4, 4)
    assert sum(answered) == len(questions.rows)
    assert max(answered) == 7


def test_the_public_decoder_knows_the_evaluation_tasks(tmp_path: Path) -> None:
    bundle = f"bundle={write_official(tmp_path / 'arc_v1_public')}"
    made, summary = run(tmp_path, bundle, base=OFFICIAL)
    assert (summary["decoder_known_evaluation_tasks"], summary["evaluation_tasks"]) == (2, 2)
    assert "decoder_known" in summary["notes"][0]
    assert "public checkpoint" in summary["notes"][0]
    assert not set(made.prepared.source.task_ids) & set(made.prepared.questions.task_ids)
    verdict, info = summary["verdict"], summary["checkpoint_info"]
    assert verdict["scenario"] == "UNDECIDED"  # no controls, and the decoder knew the tasks
    assert any("decoder_known" in note for note in verdict["notes"])
    assert any(line.startswith("verdict: UNDECIDED") for line in said)
    assert (info["decoder_known"], info["train_test_disjoint"], info["eval_tasks"]) == (True, True, 2)
    assert info["structure_run"]["L_cycles"] == 2
    assert any("constant_context_loss" in missing for missing in verdict["missing"])


def test_tasks_that_repeat_training_tasks_are_left_out_by_name(tmp_path: Path) -> None:
    """Catalogue entry 14: on the full canvas, ARC-AGI-1's two cross-split duplicates."""
    full = write_official(tmp_path / "arc_v1_public", dataclasses.replace(TINY, seq_len=900), rows=4)
    config, _ = load_run(SEED_CONFIG, [*given(OFFICIAL), f"bundle={full}", "evaluation_tasks=0"])
    prepared = prepare(config, resolve_bundle(config.bundle))
    asked = set(prepared.questions.task_ids)
    assert len(asked) == 398
    assert not asked & {"070dd51e", "50a16a69"}
    assert prepared.disjoint is True
    assert any("070dd51e repeats the training task 40853293" in note for note in prepared.notes)
    assert any("50a16a69 repeats the training task caa06a1f" in note for note in prepared.notes)


def test_claims_about_the_decoder_are_checked_not_merged(tmp_path: Path) -> None:
    bundle = f"bundle={write_official(tmp_path / 'arc_v1_public')}"
    run(tmp_path, bundle, "arch.L_cycles=2", "arch.hidden_size=32", "arch.puzzle_emb_len=2", base=OFFICIAL)
    with pytest.raises(ConfigError, match=r"arch\.L_cycles=6, but it is 2"):
        run(tmp_path / "new", bundle, "arch.L_cycles=6", base=OFFICIAL)
    with pytest.raises(ConfigError, match=r"unknown key 'arch\.l_cycles'.*L_cycles"):
        run(tmp_path / "new", bundle, "arch.l_cycles=2", base=OFFICIAL)
    assert not (tmp_path / "new").exists()


def test_another_config_is_refused_and_nothing_written_over(tmp_path: Path) -> None:
    made, _ = run(tmp_path)
    before = {p.name: p.read_bytes() for p in made.folder.iterdir()}
    with pytest.raises(CheckpointError, match=r"another config \(optim\.lr differ"):
        run(tmp_path, "optim.lr=1e-3")
    (made.folder / "all_config.yaml").unlink()
    with pytest.raises(CheckpointError, match=r"no all_config\.yaml"):
        run(tmp_path)
    assert {p.name: p.read_bytes() for p in made.folder.iterdir()} == {
        name: value for name, value in before.items() if name != "all_config.yaml"
    }


@pytest.mark.parametrize(
    ("overrides", "error", "told"),
    [
        (["data.train_tasks=-1"], ConfigError, "train_tasks is -1"),
        (["evaluation_tasks=-1"], ConfigError, "evaluation_tasks is -1"),
        (["evaluation_tasks=13"], ConfigError, "evaluation_tasks is 13, but there are 12"),
        (
            ["data.benchmark=arc-agi-1"],
            ConfigError,
            "evaluation.seen_queries, evaluation.unseen_queries, evaluation.pr",
        ),
        (["data.benchmark=arc-agi-1", "evaluation.augmentations=0"], ConfigError, "evaluation.augmentations is 0"),
        (["data.benchmark=micro-9"], ConfigError, "micro-2"),
        (["data.benchmark=cal-1"], ConfigError, "was trained for benchmark micro-2"),
        (["data.augmentations=8"], ConfigError, "set data.augmentations=1"),
        (["optim.warmup_updates=4"], ConfigError, "warm"),
        (["optim.lrr=1"], ConfigError, "nearest valid: 'optim.lr'"),
        (["budget.updates=0"], ConfigError, "set one and the other to 0"),
        ([*ARC, "data.train_tasks=401"], DataError, "data.train_tasks is 401"),
        ([*ARC, "evaluation_tasks=1", "loss.objective=lm+table"], ConfigError, "no table row"),
        (["project=../x"], CheckpointError, "is no folder name"),
    ],
)
def test_bad_input_is_one_sentence_before_anything_is_written(
    tmp_path: Path, overrides: list[str], error: type[Exception], told: str
) -> None:
    with pytest.raises(error) as caught:
        run(tmp_path / "new", *overrides)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "new").exists()


def test_ranks_that_cannot_share_the_batch_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, _ = load_run(SEED_CONFIG, [])
    with pytest.raises(ConfigError, match=r"not divisible by 3 ranks; set budget\.batch_size=255"):
        check_ranks(config.budget, 3)
    check_ranks(config.budget, 4)
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(ConfigError, match="'two'"):
        run(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_the_precision_is_the_encoders_and_changes_what_it_computes(tmp_path: Path) -> None:
    """The decoder of the micro bundle computes in bf16 or fp32 as it was trained; only the encoder follows the key."""
    rows = {}
    for precision in ("float32", "bfloat16", "auto"):
        made, _ = run(tmp_path, f"precision={precision}", f"run={precision}", "budget.evaluations=1")
        rows[precision] = lines(made)[0]["train/lm_loss"]
        trained = [p for p in made.state.model.parameters() if p.requires_grad]
        assert {p.dtype for p in trained} == {torch.float32}
    own = "bfloat16" if made.model.decoder.dtype is torch.bfloat16 else "float32"
    other = "float32" if own == "bfloat16" else "bfloat16"
    assert rows["auto"] == rows[own]
    assert rows["auto"] != rows[other]
    assert rows["auto"] == pytest.approx(rows[other], rel=0.02)


def test_compile_is_asked_for_before_training_and_what_it_says_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pretended(model, probe, say):
        say(f"compile: asked with {len(probe.inputs)} episodes")
        return False

    monkeypatch.setattr(pretraining, "compile_checked", pretended)
    run(tmp_path, "budget.evaluations=1")
    assert not any("compile" in line for line in said)
    run(tmp_path, "budget.evaluations=1", "compile=true", "run=compiled")
    assert "compile: asked with 2 episodes" in said


def test_a_tracker_that_is_not_installed_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    with pytest.raises(ConfigError, match=r"wandb, which is not installed; run: pip install -e '\.\[wandb\]'"):
        run(tmp_path / "new", "trackers=wandb")
    assert not (tmp_path / "new").exists()


def test_trackers_get_every_line_of_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    got: list[tuple[int, dict[str, float]]] = []
    opened: list[tuple[object, ...]] = []

    class Fake:
        def __init__(self, *options):
            opened.append(options)

        def __call__(self, step, metrics):
            got.append((step, dict(metrics)))

        def close(self):
            opened.append(("closed",))

    monkeypatch.setattr(pretraining, "Trackers", Fake)
    monkeypatch.setattr(pretraining, "check_installed", lambda name: None)
    made, _ = run(tmp_path, "trackers=wandb+tensorboard")
    assert opened[0][:3] == ("wandb+tensorboard", "ETRM-FrozenDecoder-Test", "micro")
    assert opened[0][5] == 0
    assert opened[-1] == ("closed",)
    (made.folder / "step_8").write_bytes(b"cut")
    opened.clear()
    before = len(got)
    run(tmp_path, "trackers=wandb+tensorboard")
    assert opened[0][5] == 4  # where the run goes on, not the newest file
    assert got[before:] == [pair for pair in got[:before] if pair[0] > 4]
    del got[before:]
    written = [{k: v for k, v in line.items() if k != "step" and v is not None} for line in lines(made)]
    assert [{k: v for k, v in values.items() if v == v} for _, values in got] == written
    assert [step for step, _ in got] == [line["step"] for line in lines(made)]


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert choose_device("auto").type == "cpu"
    with pytest.raises(ConfigError, match=r"system\.device is cuda, but torch finds cpu here"):
        choose_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto").type == "cuda"
