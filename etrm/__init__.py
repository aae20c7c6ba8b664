"""etrm: can this demonstration encoder drive this frozen Tiny Recursive Model decoder?

The answer is a pytest run whose assertions are the hypotheses, and a verdict that names its evidence. Read the packages
in the direction of the data: `config`, `data`, `models`, `training`, then `probes`, `evaluation` and `faults`, then
`experiment`.

Importing this package imports nothing else, torch least of all, so that command lines and pytest start at once.
"""

__version__ = "0.1.0"
