"""`python -m etrm.experiment.report RUN` and `python -m etrm.experiment.report compare RUN RUN ...`."""

import sys

from etrm.experiment.report.command import main

if __name__ == "__main__":
    sys.exit(main())
