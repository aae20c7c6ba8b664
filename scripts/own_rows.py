"""What a decoder of ARC tasks answers with its own rows, by task: python scripts/own_rows.py [BUNDLE] [--pairs N]

Of each task that BUNDLE (default arc-5) was trained on, under the identity: up to N of its generated pairs (those of
the bundle's own benchmark), its demonstrations and its held-out queries, answered and in all. A task that is answered
where generators draw and not where its own demonstrations lie has the wrong generated pairs; one that answers neither
needs more updates. It chose what changed from arc-3 to arc-4 and arc-5 (docs/experiments/LOG.md), so the held-out rates
of these tasks are numbers of development. Exit status: 0, or 1 with a sentence.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from etrm.data.arc import Task
from etrm.data.arc_split import ArcBenchmark, arc_benchmark, split_arc
from etrm.data.augment import IDENTITY
from etrm.data.episodes import ArcSource
from etrm.data.generated import generated_pairs
from etrm.errors import EtrmError
from etrm.evaluation.controls import answer, own_rows
from etrm.models.bundle import Bundle, load_bundle

SIZE = 128  # queries of a batch


def answered(bundle: Bundle, side: int, tasks: Sequence[Task]) -> list[tuple[int, int]]:
    """(exact, asked) of each task's queries with the decoder's own rows."""
    source = ArcSource(tasks, [[IDENTITY]] * len(tasks), side, 1, bundle.row_of)
    asked = source.encode(source.queries())
    exact = answer(bundle.decoder, asked, own_rows(bundle.decoder, bundle.table, asked), SIZE, "softmax").exact
    of = np.asarray(asked.task)
    return [(int(exact[of == i].sum()), int((of == i).sum())) for i in range(len(tasks))]


def lines(bundle: Bundle, benchmark: ArcBenchmark, pairs: int) -> list[str]:
    """A table's lines, the tasks that answer most generated pairs first."""
    tasks = [t for t in split_arc(benchmark).decoder if t.id in bundle.provenance.task_ids]
    kinds = {"demonstrations": [replace(t, queries=t.demos) for t in tasks], "queries": tasks}
    if benchmark.generated:
        more = generated_pairs(benchmark.generated)
        kinds = {"generated": [replace(t, queries=more[t.id][:pairs]) for t in tasks]} | kinds
    found = {kind: answered(bundle, benchmark.side, asked) for kind, asked in kinds.items()}
    first = next(iter(found.values()))
    order = sorted(range(len(tasks)), key=lambda i: first[i][0] / first[i][1], reverse=True)
    listed = [f"{tasks[i].id}  " + ", ".join(f"{k} {found[k][i][0]} of {found[k][i][1]}" for k in found) for i in order]
    sums = ", ".join(f"{k} {sum(e for e, _ in counts)} of {sum(n for _, n in counts)}" for k, counts in found.items())
    return [*listed, f"all       {sums}"]


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", nargs="?", default="arc-5")
    parser.add_argument("--pairs", type=int, default=64)
    given = parser.parse_args()
    if given.pairs < 1:
        parser.error(f"--pairs {given.pairs}: expected at least 1")
    try:
        bundle = load_bundle(given.bundle)
        print("\n".join(lines(bundle, arc_benchmark(bundle.provenance.benchmark), given.pairs)))
    except EtrmError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
