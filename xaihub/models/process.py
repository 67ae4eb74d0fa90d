"""Errors of plugins: whatever their code raises becomes one error that names them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress

from xaihub.errors import PluginError, XaihubError
from xaihub.notices.interrupts import heard
from xaihub.notices.leaving import refused
from xaihub.params import Parametrised


@contextmanager
def fenced(by: Parametrised) -> Iterator[None]:
    """Let whatever plugin code inside raises cost only what is inside: it becomes one error that names the plugin.

    Only Ctrl-C of the user passes; a KeyboardInterrupt that the code itself raises does not. With XAIHUB_DEBUG set,
    everything passes. An attempt of other than built-in code to end the process raises `SystemExit` there.

    Raises:
        XaihubError: What the code raised, or a `PluginError` in place of any other exception.
    """
    with heard() as presses:
        try:
            with nullcontext() if by.origin.builtin else refused():
                yield
        except XaihubError:
            raise
        except BaseException as error:
            if presses.raised(error) or os.environ.get("XAIHUB_DEBUG"):
                raise
            raise failure(error, by) from error
        finally:
            if presses and not isinstance(sys.exception(), KeyboardInterrupt):  # swallowed, or turned into another
                raise KeyboardInterrupt


def marked(error: BaseException, by: Parametrised) -> None:
    """Note on an exception whose code raised it, unless code that it called has been noted before."""
    with suppress(Exception):  # some exceptions take no attributes
        if "culprit" not in vars(error):
            error.culprit = by  # type: ignore[attr-defined]


def failure(error: BaseException, by: Parametrised) -> PluginError:
    """Return the error that names the plugin in place of what its code raised, which may not even have a text."""
    try:
        by = vars(error).get("culprit", by)
        text = f": {error}"[:300]
    except BaseException:  # `__str__` is the plugin's code as well
        text = ""
    return PluginError(f"{by.described}: {type(error).__name__}{text}", hint="XAIHUB_DEBUG=1 shows the traceback")
