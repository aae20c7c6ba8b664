"""`python -m etrm.probes`: the per-layer gradient table and the breaks of a config's encoder, or of an encoder file.

    python -m etrm.probes --config-name cfg_micro
    python -m etrm.probes --encoder my_encoder.py:make

Builds the config's encoder in front of its frozen decoder, takes one batch of its episodes and asks `etrm.probes`.
Exit code 0: intact. 1: blocked, partial, vanishing or not the loss's gradient. 2: it could not be asked; the reason is
printed. It stands here and not in etrm.probes because it needs the arms, which lie above the probes.
"""

import argparse
import sys
from collections.abc import Sequence

import numpy as np
import torch

from etrm.config.compose import load
from etrm.config.schema import RunConfig
from etrm.errors import EtrmError
from etrm.experiment.arms import build_arm
from etrm.models.bundle import load_bundle
from etrm.models.encoders import build_encoder
from etrm.models.etrm import ETRM, Episodes
from etrm.probes.diagnosis import Diagnosis, diagnose
from etrm.training.update import LossHead


def check_gradient(config: RunConfig, samples: int, audit: bool) -> tuple[LossHead, Diagnosis]:
    """The diagnosis of a config's encoder on `samples` episodes, and the head it was made of."""
    bundle = load_bundle(config.bundle)
    arm = build_arm(config, bundle)
    torch.manual_seed(config.system.seed)
    head = LossHead(ETRM(build_encoder(config.encoder, bundle.spec()), bundle.decoder, bundle.spec()), config.loss)
    head.train()
    head.decoder.eval()
    drawn = arm.source.sample(samples, np.random.default_rng([78, config.system.seed]))
    return head, diagnose(head, Episodes.of(drawn, torch.device("cpu")), audit=audit)


def layer_table(head: LossHead, found: Diagnosis) -> str:
    """Gradient norm before clipping, norm over weight norm, and the state of finite differences, by layer."""
    if found.breaks is None:
        return ""
    norms = {n: v for n, v in found.breaks.norms.items() if n.startswith("model.encoder.")}
    weights = dict(head.named_parameters())
    audited = {e.name: e.status for e in found.audit.entries} if found.audit is not None else {}
    layers: dict[str, list[str]] = {}
    for name in norms:
        layers.setdefault(name.rpartition(".")[0].removeprefix("model.encoder").lstrip(".") or "(root)", []).append(
            name
        )
    width = max(map(len, layers), default=5)
    rows = [f"{'layer':<{width}}  {'gradient':>10}  {'/ weight':>10}  finite differences"]
    for layer, names in layers.items():
        size = sum((norms[n] or 0.0) ** 2 for n in names) ** 0.5
        weight = sum(float(weights[n].detach().double().square().sum()) for n in names) ** 0.5
        states = sorted({audited.get(n.removeprefix("model.encoder."), "not asked") for n in names})
        share = f"{size / weight:10.3g}" if weight else f"{'-':>10}"
        rows.append(f"{layer:<{width}}  {size:10.4g}  {share}  {', '.join(states)}")
    return "\n".join(rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table, the breaks and the state; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m etrm.probes", description=__doc__.partition("\n")[0])
    parser.add_argument("--config-name", default="cfg_micro", help="a config without .yaml (default cfg_micro)")
    parser.add_argument("--encoder", metavar="FILE_OR_MODULE:FACTORY", help="instead of the config's encoder")
    parser.add_argument("--samples", type=int, default=8, help="episodes in the batch (default 8)")
    parser.add_argument("--no-audit", action="store_true", help="leave out the finite differences")
    parser.add_argument("overrides", nargs="*", help="key=value of the config")
    options = parser.parse_args(arguments)
    overrides = [*options.overrides, *([f"encoder.name={options.encoder}"] if options.encoder else [])]
    try:
        config = load(RunConfig, options.config_name, overrides)
        head, found = check_gradient(config, options.samples, not options.no_audit)
    except EtrmError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    print(
        f"encoder {config.encoder.name}, bundle {config.bundle}, LM loss of {options.samples} episodes, 2 ACT steps\n"
    )
    print(layer_table(head, found))
    if found.breaks is not None:
        print(f"\n{found.breaks}")
    print(f"\n{found}")
    return 0 if found.ok else 1
