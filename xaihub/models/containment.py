"""Containment: what code of a plugin changes in a network is found and undone.

Weights and buffers are compared by their version counters while a built-in plugin runs. While any other code runs they
are compared by their contents, so that writes through `.data` are found, against a copy that also restores them.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from xaihub.errors import ModelError, PluginError
from xaihub.models.hashing import hash_state
from xaihub.models.process import marked
from xaihub.models.snapshot import Copies, Snapshot
from xaihub.notices.process import Observer, of_process, of_python, of_random, of_thread
from xaihub.params import Parametrised

_CACHES = ("structure", "ending", "row_bytes", "_hashed", "_checked_rows", "_order", "_guard", "masked_rows")


class Guard:
    """Watches over one model while code of plugins runs."""

    def __init__(self) -> None:
        """Watch nothing yet."""
        self.reason = ""  # why the model cannot be used any more
        self.weights_hash = ""  # of the weights with which a method runs now
        self._copies: Copies = {}
        self._depth = 0
        self._ignored: frozenset[str] = frozenset()
        self._last: Snapshot | None = None
        self._filled: tuple[Snapshot, Snapshot] | None = None  # the last one, without and with contents

    def check(self) -> None:
        """Refuse a model that was changed and could not be restored.

        Raises:
            ModelError: It was.
        """
        if self.reason:
            raise ModelError(self.reason, hint="load the model again")

    @contextmanager
    def learning(self, network: nn.Module) -> Iterator[None]:
        """Note what the network itself changes when it is run, such as a counter of its calls."""
        before = Snapshot(network)
        yield
        self._ignored |= {*before.changes(), *before.written()}

    @contextmanager
    def watching(self, model: Any, by: Parametrised | None, *, parallel: bool) -> Iterator[None]:
        """Undo what is changed inside; of `by`, also the settings of the process and the contents of the weights.

        Raises:
            PluginError: `by` changed something, so that its result is worth nothing.
            ModelError: An earlier change could not be undone.
        """
        self.check()
        foreign = by is not None and not by.origin.builtin
        before = self._snapshot(model, foreign=foreign, watched=by is not None)
        own, runtime = dict(vars(model)), dict(vars(model.runtime))
        process = None if by is None else _observer(foreign=foreign, parallel=parallel)
        found: list[str] = []
        outer, self.weights_hash = self.weights_hash, before.weights_hash
        self._depth += 1
        try:
            yield
        except BaseException as error:
            if by is not None:
                marked(error, by)
            raise
        finally:
            self._depth -= 1
            self.weights_hash = outer
            found += [] if process is None else [f"changed {what}" for what in process.restore()]
            found += _restore_model(model, own, runtime)
            found += self._restore(before, by)
            if found:
                for name in ("structure", "row_bytes"):
                    vars(model).pop(name, None)
        if found and by is not None:
            more = f" and {len(found) - 1} more" if len(found) > 1 else ""
            undone = "it cannot be undone" if "still runs" in found[0] else "it was undone"
            undone = "the model cannot be used any more" if self.reason else undone
            raise PluginError(f"{by.described} {found[0]}{more}; {undone}, and the result is discarded")

    def _snapshot(self, model: Any, *, foreign: bool, watched: bool) -> Snapshot:
        """Return the last snapshot, where nothing has changed since, or a new one."""
        if self._last is None or self._last.network is not model.module or not self._last.unchanged:
            self._last = Snapshot(model.module, ignored=self._ignored)
        if watched and not self._last.weights_hash:
            self._last.weights_hash = model.fresh_weights_hash()
        if not foreign:
            return self._last
        if self._depth:  # code of a third party runs another method, whose copies must not replace the outer one's
            return self._last.with_contents()
        if self._filled is None or self._filled[0] is not self._last or not self._filled[1].contents_unchanged:
            self._filled = self._last, self._last.with_contents(self._copies)
        return self._filled[1]

    def _restore(self, before: Snapshot, by: Parametrised | None) -> list[str]:
        who = "code" if by is None else by.described
        try:
            if before.unchanged:
                return []
            found = before.restore()
            left = before.changes() if found else []
            if before.written():
                self._last = None
                if by is not None and before.weights_hash not in ("", hash_state(before.network.state_dict())):
                    left = ["changed the weights"]
        except Exception as error:  # whatever was done to the tensors
            found, left = [], [f"changed the weights beyond reading ({type(error).__name__})"]
        if left:
            self.reason = f"the model was changed and cannot be restored: {who} {left[0]}"
        return found or left


def _observer(*, foreign: bool, parallel: bool) -> Observer:
    """Observe the process, from the main thread only what other threads share: a change may be one of theirs.

    The random states are observed of `parallel` code, since nothing else restores them then.
    """
    alone = threading.current_thread() is threading.main_thread()
    settings = (
        *of_thread(),
        *(of_process() if alone else ()),
        *(of_python() if alone and foreign else ()),
        *(of_random() if alone and foreign and parallel else ()),
    )
    return Observer(settings, left=foreign and alone, functions=foreign)


def _restore_model(model: Any, own: dict[str, Any], runtime: dict[str, Any]) -> list[str]:
    """Undo changes of the attributes of a model and of its runtime."""
    found = []
    now = vars(model)
    changed = [name for name in own if now.get(name) is not own[name] and name not in _CACHES]
    for name in changed + [name for name in now if name not in own and callable(getattr(type(model), name, None))]:
        now.pop(name, None)
        now.update({name: own[name]} if name in own else {})
        found.append(f"changed {name!r} of the model")
    if vars(model.runtime) != runtime:
        vars(model.runtime).update(runtime)
        found.append("changed the runtime of the model")
    return found
