"""TRM's own protocol: an official checkpoint's puzzle table as contexts, one row an augmented puzzle.

Notable: the checkpoint does not say which row belongs to which puzzle; the public data set's `identifiers.json` does (a
list of augmented names, `base|||t3|||0312456789`, whose place is the row; 0 is blank). Rows are read from the mapped
file as they are asked for, so the 1.8 GB table is never in memory.

Legend: B batch, T context tokens, D hidden, R table rows, W a row's width.
"""

import json
from pathlib import Path

from torch import Tensor, nn

from etrm.errors import CheckpointError, DataError
from etrm.models.encoders import Encoded
from etrm.models.etrm import Episodes
from etrm.models.official_file import OfficialFile, map_state
from etrm.models.trm import TRMDecoder, table_context

BLANK = "<blank>"


def read_identifiers(path: Path, rows: int) -> dict[str, int]:
    """Augmented puzzle names and their table rows out of identifiers.json. DataError unless it names `rows` rows."""
    remedy = (
        "give the identifiers.json that the public TRM data builder writes for the checkpoint's data set "
        "(python -m dataset.build_arc_dataset, arc1concept-aug-1000 for arc_v1_public)"
    )
    if not path.is_file():
        raise DataError(f"{path} does not exist; {remedy}")
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read ({error}); {remedy}") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(f"{path} is no list of names; {remedy}")
    if len(names) != rows:
        raise DataError(f"{path} names {len(names)} rows, but the checkpoint's table has {rows}; {remedy}")
    found: dict[str, int] = {}
    for row, name in enumerate(names):
        if name != BLANK and found.setdefault(name, row) != row:
            raise DataError(f"{path} names {name} twice, rows {found[name]} and {row}; {remedy}")
    return found


class OfficialTable(nn.Module):
    """A decoder with the rows of its own table, read from the file; `context(episodes)` gives (B, T, D) fp32."""

    def __init__(self, decoder: TRMDecoder, file: OfficialFile) -> None:
        super().__init__()
        if file.table is None:
            raise CheckpointError(f"{file.path} has no puzzle table, so the decoder has no contexts of its own")
        self.decoder = decoder
        self.file = file
        self.name, self.rows, _ = file.table

    def context(self, episodes: Episodes) -> Encoded:
        """The rows that the episodes ask for. CheckpointError for a row that is not there."""
        wanted = episodes.row.cpu()
        if bool(((wanted < 0) | (wanted >= self.rows)).any()):
            raise CheckpointError(f"{self.file.path}: a row outside its table of {self.rows} was asked for")
        rows = map_state(self.file.path)[self.name][wanted].float()  # (B, W); a new mapping lets the pages go
        return Encoded(table_context(rows, self.decoder.structure).to(episodes.inputs.device), {})


class BundleTable(nn.Module):
    """The same for a bundle, whose table is in memory."""

    def __init__(self, decoder: TRMDecoder, table: Tensor) -> None:
        super().__init__()
        self.decoder = decoder
        self.table = table

    def context(self, episodes: Episodes) -> Encoded:
        """The rows that the episodes ask for, (B, T, D)."""
        rows = self.table[episodes.row.cpu()]
        return Encoded(table_context(rows, self.decoder.structure).to(episodes.inputs.device), {})
