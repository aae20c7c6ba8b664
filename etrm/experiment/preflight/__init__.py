"""What must hold before an outcome means anything, asked of the very objects that are about to be used.

Each module states invariants of one part (data, paths, encoder, update, evaluator) and measures them on the arm's own
source, rungs, model, optimiser and evaluator. Nothing here knows which bug to look for: a labels' shift, a leak or a
skipped step fails because an independent computation of the same thing gives another result.
"""

from etrm.config.schema import RunConfig
from etrm.experiment.arms import Arm
from etrm.experiment.checks import Check
from etrm.experiment.preflight.data import data_checks
from etrm.experiment.preflight.encoder import encoder_checks
from etrm.experiment.preflight.evaluator import evaluator_checks
from etrm.experiment.preflight.paths import path_checks
from etrm.models.bundle import Bundle
from etrm.models.etrm import ETRM


def preflight(config: RunConfig, arm: Arm, bundle: Bundle, model: ETRM, untrained: ETRM) -> list[Check]:
    """The invariants of data, paths, encoder and evaluator, as validity checks; `update.update_checks` follows once the
    gradient is known to be intact. The model is left as it was; `untrained` is the one that stands as a null.
    """
    return [
        *data_checks(config, arm, bundle),
        *path_checks(config, arm, bundle, model, untrained),
        *encoder_checks(arm, model),
        *evaluator_checks(config, arm, model, bundle),
    ]
