"""Memory between steps, where the C library can be told what to do with it."""

from __future__ import annotations

import ctypes

__all__ = ["keep_freed_memory"]

# Parameters of mallopt(3), and their values: never map a block on its own, give back only what is beyond 2 GB, and take
# half a GB at once.
_SETTINGS = {-4: 0, -1: 2**31 - 1, -2: 2**29}


def keep_freed_memory() -> bool:
    """Tell the GNU C library to keep what is freed, for this process; return whether it could be told.

    By default it gives large blocks back to the system as soon as they are free. Each step of training then asks for
    the same blocks again, and pays for every page of them.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # another C library, or another system
        return False
    told = [mallopt(name, value) for name, value in _SETTINGS.items()]
    return all(told)
