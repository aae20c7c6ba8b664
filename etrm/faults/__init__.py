"""The bank of planted bugs: what really went wrong in this line of work, one small entry each, and what must catch it.

An entry plants its bug into a healthy system through seams anybody could break (a wrapper around the model, another
source, an altered bundle, a function replaced wherever it was imported) and says which verdict must come out and which
check must name it. A plant may sit anywhere, so this package stands above `experiment`; nothing imports it but its own
runner and tests.
"""

from etrm.faults.bank import BANK, Bench, Fault, fault, load_bank

__all__ = ["BANK", "Bench", "Fault", "fault", "load_bank"]
