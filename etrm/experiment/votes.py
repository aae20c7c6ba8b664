"""pass@k by voting over augmentations on the rungs of real tasks, for the encoder and for the decoder's own rows.

The rungs count every augmented query by itself, which is what intervals and nulls are paired on; this is the published
figure beside it: predictions cropped, turned back and voted, k most voted grids. Metrics are named
`ARC/pass@K` (headline rung), `ARC/<rung>/pass@K` and `ARC/own_rows/pass@K`, scored by the fraction of a task's tests.
"""

from etrm.config.schema import RunConfig
from etrm.evaluation.controls import Answers, own_rows
from etrm.evaluation.controls import answer as answer_queries
from etrm.evaluation.voting import FRACTION_RULE, Vote, VoteResult
from etrm.experiment.arms import Arm, Rung
from etrm.experiment.outcome import own_answers
from etrm.models.bundle import Bundle
from etrm.models.etrm import ETRM

PASS_AT = (1, 2)


def voted(rung: Rung, answers: Answers, side: int) -> VoteResult:
    """Vote over the augmentations of a rung's queries. EvaluationError (from Vote) on a query asked twice."""
    vote = Vote(rung.truths)
    for (task, query, augmentation), tokens, halt in zip(rung.asked, answers.tokens, answers.halt, strict=True):
        vote.add(task, query, augmentation, tokens, side, float(halt), scored=True)
    return vote.result(PASS_AT)


def voted_metrics(config: RunConfig, arm: Arm, model: ETRM, bundle: Bundle) -> dict[str, float | None]:
    """Voted pass@k of every rung and of the decoder's own rows; empty for an arm without augmentations."""
    metrics: dict[str, float | None] = {}
    for rung in arm.rungs:
        if not rung.asked:
            continue
        found = voted(rung, own_answers(config, model, rung), bundle.side)
        metrics |= _named(f"ARC/{rung.name}/", found)
        if rung is arm.rungs[-1]:
            metrics |= _named("ARC/", found)
    first = arm.rungs[0]
    if first.asked:
        contexts = own_rows(bundle.decoder, bundle.table, first.batch)
        size, kind = config.evaluation.batch_size, config.loss.cross_entropy
        answers = answer_queries(bundle.decoder, first.batch, contexts, size, kind)
        metrics |= _named("ARC/own_rows/", voted(first, answers, bundle.side))
    return metrics


def _named(prefix: str, found: VoteResult) -> dict[str, float | None]:
    return {f"{prefix}pass@{k}": found.pass_at(k, FRACTION_RULE) for k in PASS_AT}
