"""What is this file? python scripts/inspect_checkpoint.py FILE [--json]

FILE is a bundle folder, an official checkpoint or a step_N of ours. Prints its kind, decoder, structure, table, encoder
and step. Exit status: 0, or 2 where it cannot be read (says why).
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from etrm.errors import EtrmError  # noqa: E402  (the repository need not be installed)
from etrm.experiment.decoder_files import DecoderFile, open_decoder  # noqa: E402


def described(file: DecoderFile) -> dict[str, Any]:
    """Plain values for JSON."""
    tensors = {name: {"shape": list(t.shape), "dtype": str(t.dtype)} for name, t in file.tensors.items()}
    return {
        "path": file.path,
        "kind": file.kind,
        "decoder_parameters": sum(t.numel() for t in file.tensors.values()),
        "decoder_tensors": tensors,
        "structure": None if file.structure is None else asdict(file.structure),
        **file.facts,
    }


def main() -> int:
    """Read and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    try:
        found = described(open_decoder(arguments.file))
    except EtrmError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    if arguments.json:
        print(json.dumps(found, indent=2))
        return 0
    for key, value in found.items():
        if isinstance(value, dict):
            print(f"{key}:")
            for name, part in value.items():
                print(
                    f"  {name}: {part['shape']} {part['dtype']}"
                    if key == "decoder_tensors"
                    else f"  {name}: {part!s:.100}"
                )
        else:
            print(f"{key}: {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
