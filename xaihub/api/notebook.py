"""Preliminary maps in a notebook, in place of one another, while an explanation runs."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xaihub.explainers.explanation import Explanation


@contextmanager
def live_preview(own: Callable[[Explanation], None] | None) -> Iterator[Callable[[Explanation], None] | None]:
    """Yield what shows a preliminary map: `own`, else the notebook of the main thread, else None.

    The display disappears at the end, when the notebook shows the result itself.
    """
    if own is not None or not _in_notebook():
        yield own
        return
    display: Any = import_module("IPython.display").display  # its types are incomplete
    handle: Any = None

    def show(explanation: Explanation) -> None:
        nonlocal handle
        if handle is None:
            handle = display(explanation, display_id=True)
        else:
            handle.update(explanation)

    try:
        yield show
    finally:
        if handle is not None:
            handle.update({"text/plain": ""}, raw=True)


def _in_notebook() -> bool:
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return hasattr(shell, "kernel") and threading.current_thread() is threading.main_thread()
