"""The zip archive around every file of torch.save, checked before torch opens it.

Notable: torch neither compares the checksums in the archive nor minds what its entries claim to hold, so a flipped bit
in a weight would load in silence and a compressed entry could fill the memory. torch.save stores and never compresses,
so each entry must be stored, and all of them together no larger than the file. Format: PKWARE's APPNOTE 6.3.
"""

import pickle
import struct
import zipfile
from pathlib import Path

ENTRIES = 100_000  # a checkpoint has some tens; listing more costs more than opening it
BAD_ARCHIVE = (zipfile.BadZipFile, OSError, EOFError, ValueError, RuntimeError, NotImplementedError, struct.error)
# What torch.load with weights_only raises for files that it cannot or will not read; the unpickler of malformed
# opcodes runs into Python's own errors of type, index and key.
UNREADABLE = (
    OSError,
    EOFError,
    RuntimeError,
    ValueError,
    KeyError,
    TypeError,
    IndexError,
    AttributeError,
    AssertionError,
    MemoryError,
    OverflowError,
    ImportError,
    struct.error,
    pickle.UnpicklingError,
)


def archive_fault(path: Path, checksums: bool = True) -> str | None:
    """What is wrong with the archive at `path`, in a few words; None where it is as torch.save writes it.

    `checksums` also reads every entry and compares it with its CRC-32, which finds any flipped bit in it.
    """
    try:
        if not zipfile.is_zipfile(path):
            # What torch would go on to try with it, an old pickle, is nothing that we have ever written.
            return "it is no file of torch.save"
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if len(entries) > ENTRIES:
                return f"it lists {len(entries)} entries"
            if packed := [e.filename for e in entries if e.compress_type != zipfile.ZIP_STORED]:
                return f"its entry {packed[0]!r:.60} is compressed, which torch.save never writes"
            claimed, there = sum(e.file_size for e in entries), path.stat().st_size
            if claimed > there:
                return f"its entries claim {claimed} bytes of a file of {there}"
            names = [e.filename for e in entries]
            if len(set(names)) != len(names):
                return "two of its entries have one name"
            broken = archive.testzip() if checksums else None
            return None if broken is None else f"its entry {broken!r:.60} does not have its checksum"
    except BAD_ARCHIVE as error:
        return f"its archive is damaged ({(str(error) or type(error).__name__).splitlines()[0]:.100})"
