"""`python -m etrm.probes`; see etrm.experiment.gradient_check, which it runs."""

import sys
from importlib import import_module

if __name__ == "__main__":
    # By name, for the command needs the arms, and imports point downwards.
    sys.exit(import_module("etrm.experiment.gradient_check").main())
