"""Synthetic checkpoints with the names, shapes and config keys of the official TRM release; sizes are parameters.

`write_official(folder)` writes `step_N` and `all_config.yaml` as the public code does: a compiled model's state dict,
bf16 start states, fp32 weights, and a config with many keys that nobody here reads.
"""

from pathlib import Path
from typing import Any

import torch
import yaml

from etrm.models.trm import Structure, TRMDecoder

TINY = Structure(12, 81, 2, 32, 2, 4.0, 1, 2, 2, "rope", False, 10000.0, 1e-5, "float32", 2)
FULL = Structure(12, 900, 16, 512, 8, 4.0, 2, 3, 4, "rope", False, 10000.0, 1e-5, "bfloat16", 16)
PREFIX = "_orig_mod.model.inner."


def official_config(s: Structure) -> dict[str, Any]:
    """What the public trainer writes as all_config.yaml; seq_len only where the canvas is not ARC's."""
    arch = {
        "H_cycles": s.h_cycles,
        "H_layers": 0,
        "L_cycles": s.l_cycles,
        "L_layers": s.layers,
        "expansion": 4,
        "forward_dtype": s.forward_dtype,
        "halt_exploration_prob": 0.1,
        "halt_max_steps": s.halt_max_steps,
        "hidden_size": s.hidden_size,
        "loss": {"loss_type": "stablemax_cross_entropy", "name": "losses@ACTLossHead"},
        "mlp_t": s.mlp_t,
        "name": "trm@TinyRecursiveReasoningModel_ACTV1",
        "no_ACT_continue": True,
        "num_heads": s.num_heads,
        "pos_encodings": s.pos_encodings,
        "puzzle_emb_len": s.context_tokens,
        "puzzle_emb_ndim": s.hidden_size,
    }
    if s.seq_len != 900:
        arch["seq_len"] = s.seq_len
    shared = ["data/arc1concept-aug-1000"]  # dumped twice: an anchor and an alias
    return {"arch": arch, "data_paths": shared, "data_paths_test": shared, "ema": True, "lr": 1e-4, "seed": 0}


def official_state(s: Structure, rows: int, seed: int = 0, prefix: str = PREFIX) -> dict[str, torch.Tensor]:
    """A random decoder and table under official names."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        decoder = TRMDecoder(s)
        table = torch.randn(rows, s.hidden_size) * 0.3 + 0.1
    state = {prefix + name: tensor for name, tensor in decoder.state_dict().items()}
    table[0] = 0  # the blank row
    return state | {f"{prefix}puzzle_emb.weights": table}


def write_official(
    folder: Path, s: Structure = TINY, rows: int = 400, step: int = 518071, prefix: str = PREFIX, **arch: object
) -> Path:
    """Write the two files and return the checkpoint's path; `arch` replaces keys of the config's arch section."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(official_state(s, rows, prefix=prefix), folder / f"step_{step}")
    config = official_config(s)
    config["arch"] |= arch
    (folder / "all_config.yaml").write_text(yaml.dump(config))
    return folder / f"step_{step}"
