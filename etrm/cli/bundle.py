"""`etrm bundle CHECKPOINT FOLDER`: makes a bundle of an official checkpoint, once; `bundle=FOLDER` then names it."""

import argparse
from pathlib import Path

from etrm.models.official import write_bundle_once
from etrm.models.official_file import open_official
from etrm.models.official_table import read_identifiers

EXAMPLES = """examples:
  etrm bundle checkpoints/official_trm/arc_v1_public/step_518071 bundles/official
  etrm bundle checkpoints/official_trm/arc_v1_public/step_518071 bundles/whole --identifiers identifiers.json
  python pretrain_etrm.py --config-name cfg_test_frozen_decoder bundle=bundles/official

exit codes: 0, or 2 where it cannot be made, or FOLDER holds something else"""


def main(arguments: list[str], prog: str = "etrm bundle") -> int:
    """Write or find the bundle and say what it holds. Raises an EtrmError with the reason."""
    parser = argparse.ArgumentParser(prog, None, "Make a bundle of an official checkpoint.", EXAMPLES)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("checkpoint", type=Path, help="step_N, beside its all_config.yaml")
    parser.add_argument("folder", type=Path, help="where the bundle goes; one that is there is checked, not written")
    parser.add_argument(
        "--identifiers", type=Path, help="identifiers.json of the checkpoint's data: keep the whole table, under names"
    )
    options = parser.parse_args(arguments)
    rows = None
    if options.identifiers is not None:
        file = open_official(options.checkpoint)
        rows = read_identifiers(options.identifiers, 0 if file.table is None else file.table[1])
    bundle = write_bundle_once(options.checkpoint, options.folder, rows)
    size = sum(part.stat().st_size for part in options.folder.iterdir()) / 1e6
    print(
        f"{options.folder}: {size:.1f} MB, {len(bundle.provenance.row_names)} table rows, sha256 {bundle.sha256[:12]}"
    )
    print(f"  made by: {bundle.provenance.recipe}")
    return 0
