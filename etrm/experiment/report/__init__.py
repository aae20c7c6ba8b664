"""`report.html`: one self-contained page about a run, and `compare.html` about several. Torch-free, no network.

`run_folder` reads what there is and notes what is wrong; `svg` draws; `figures` turns a run into drawings, each with
the same numbers as a table; `tiles` is the verdict at a glance; `page` fills the template in `assets/`; `compare` sets
runs side by side; `publish` keeps a session's runs beside its verdict; `command` is the command line.
"""

from etrm.experiment.report.compare import write_comparison
from etrm.experiment.report.page import write_report
from etrm.experiment.report.publish import publish
from etrm.experiment.report.run_folder import RunFolder, open_runs

__all__ = ["RunFolder", "open_runs", "publish", "write_comparison", "write_report"]
