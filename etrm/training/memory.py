"""Freed memory is kept for the next update instead of going back to the system.

Notable: the C library returns every freed block above its threshold, and the system hands it out again page by page and
zeroed: about 5,000 page faults an update at the embedded scale, a sixth of its time. Raised thresholds keep the blocks.
The two parameters are those of glibc's mallopt(3); other C libraries have none and are left as they are.
"""

import ctypes
import platform

MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1  # names of <malloc.h>, which ctypes cannot read
LARGEST = 32 << 20  # bytes; blocks above it still come from the system and go back at once
KEPT = 512 << 20  # bytes free at the heap's end before any of it is given back


def keep_freed_memory() -> bool:
    """Raise glibc's thresholds for the whole process; returns whether this C library has them. Any number of calls."""
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(MMAP_THRESHOLD, LARGEST)) and bool(mallopt(TRIM_THRESHOLD, KEPT))
