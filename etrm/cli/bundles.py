"""`etrm bundles`: the decoders in the package, as their manifests describe them (`--check` loads each whole)."""

import argparse
import json
from typing import Any

from etrm.models.bundle import available, bundle_folder, load_bundle

EXAMPLES = """examples:
  etrm bundles
  etrm bundles --check     # load each: hashes, tensors, golden logits
  etrm bundles --json

exit codes: 0, or 2 where a bundle is damaged"""


def described(name: str) -> dict[str, Any]:
    """Name, benchmark, sizes, competence and recipe, from the manifest."""
    manifest = json.loads((bundle_folder(name) / "manifest.json").read_text())
    provenance, structure = manifest["provenance"], manifest["structure"]
    return {
        "name": name,
        "benchmark": provenance["benchmark"],
        "tasks": len(provenance["task_ids"]),
        "updates": provenance["updates"],
        "ceiling": provenance["ceiling"],
        "structure": structure,
        "recipe": provenance["recipe"],
    }


def main(arguments: list[str], prog: str = "etrm bundles") -> int:
    """Print the bundles. Raises BundleError with --check where one is damaged."""
    parser = argparse.ArgumentParser(prog, None, "List the embedded decoders.", EXAMPLES)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.add_argument("--check", action="store_true", help="load each bundle and its golden logits")
    options = parser.parse_args(arguments)
    found = [described(name) for name in available()]
    if options.check:
        for one in found:
            one["sha256"] = load_bundle(one["name"]).sha256
    if options.json:
        print(json.dumps(found, indent=1))
        return 0
    for one in found:
        ceiling = ", ".join(f"{key} {value}" for key, value in one["ceiling"].items())
        print(f"{one['name']}: {one['benchmark']}, {one['tasks']} tasks, {one['updates']} updates; {ceiling}")
        print(f"  made by: {one['recipe']}")
        if options.check:
            print(f"  whole: sha256 {one['sha256'][:12]}, golden logits reproduced")
    return 0
