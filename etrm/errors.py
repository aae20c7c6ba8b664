"""Typed errors. Each names the thing, the place, what was expected and the next command to run."""


class EtrmError(Exception):
    """Base of every error that etrm raises on purpose."""


class ConfigError(EtrmError):
    """A config file, key or value is wrong; the message names the key, the file and the nearest valid key."""


class DataError(EtrmError):
    """A task, grid, augmentation or episode is malformed."""


class BundleError(EtrmError):
    """A decoder bundle is incomplete, altered, or does not reproduce its golden logits."""


class CheckpointError(EtrmError):
    """A checkpoint is missing, truncated, unsafe to open, or does not fit the model."""


class EncoderContractError(EtrmError):
    """An encoder's factory, inputs or context break the encoder contract (shape, dtype, finiteness)."""


class BudgetError(EtrmError):
    """More or fewer updates were asked for than were planned."""


class NonFiniteError(EtrmError):
    """A loss, gradient or context is NaN or infinite; nothing was written to the weights."""


class EvaluationError(EtrmError):
    """An evaluation is incomplete, overlaps training, or has nothing to measure."""


class ProbeError(EtrmError):
    """A probe cannot observe what it was given; the message says why in one sentence."""
