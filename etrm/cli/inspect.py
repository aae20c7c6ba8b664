"""`etrm inspect PATH`: kind, structure, tensors and step of a bundle, an official checkpoint or one of ours."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from etrm.experiment.decoder_files import DecoderFile, open_decoder

EXAMPLES = """examples:
  etrm inspect etrm/assets/cal-1
  etrm inspect checkpoints/step_1000 --json

exit codes: 0, or 2 where the file cannot be read"""


def described(file: DecoderFile) -> dict[str, Any]:
    """Plain values for JSON: path, kind, sizes, tensors, structure and whatever else the file tells."""
    tensors = {name: {"shape": list(t.shape), "dtype": str(t.dtype)} for name, t in file.tensors.items()}
    return {
        "path": file.path,
        "kind": file.kind,
        "decoder_parameters": sum(t.numel() for t in file.tensors.values()),
        "decoder_tensors": tensors,
        "structure": None if file.structure is None else asdict(file.structure),
        **file.facts,
    }


def lines(found: dict[str, Any]) -> list[str]:
    """The same as text, a fact a line."""
    told = []
    for key, value in found.items():
        if not isinstance(value, dict):
            told.append(f"{key}: {value}")
            continue
        told.append(f"{key}:")
        for name, part in value.items():
            said = f"{part['shape']} {part['dtype']}" if key == "decoder_tensors" else f"{part!s:.100}"
            told.append(f"  {name}: {said}")
    return told


def main(arguments: list[str], prog: str = "etrm inspect") -> int:
    """Read and print. Raises an EtrmError where the file cannot be read."""
    parser = argparse.ArgumentParser(prog, None, "What is this file?", EXAMPLES)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("file", type=Path, help="a bundle's folder, an official checkpoint, or a step_N of ours")
    parser.add_argument("--json", action="store_true", help="as JSON")
    options = parser.parse_args(arguments)
    found = described(open_decoder(options.file))
    print(json.dumps(found, indent=2) if options.json else "\n".join(lines(found)))
    return 0
