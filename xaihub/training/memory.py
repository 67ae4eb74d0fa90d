"""Memory reuse between training steps, with the GNU C library."""

from __future__ import annotations

import ctypes

# mallopt(3): never map a block on its own, return only memory beyond 2 GB, and request half a GB at once.
_SETTINGS = {-4: 0, -1: 2**31 - 1, -2: 2**29}


def keep_freed_memory() -> bool:
    """Make the GNU C library keep freed memory in this process; return whether that is supported.

    By default large blocks return to the system as soon as they are freed. Each training step then requests the same
    blocks again, at the price of a page fault per page.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # another C library or system
        return False
    done = [mallopt(name, value) for name, value in _SETTINGS.items()]  # all of them, even after a failure
    return all(done)
