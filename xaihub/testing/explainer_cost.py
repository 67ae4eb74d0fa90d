"""Checks of an explainer's cost: forward passes, memory, and leaks."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from statistics import median
from typing import Any

from torch import Tensor, nn

from xaihub.explainers.budget import Budget, of_passes, within
from xaihub.models.passes import Runtime
from xaihub.testing.catalogue import applies, check, require, require_record
from xaihub.testing.cost import BUDGETS, announced
from xaihub.testing.explainer_subject import ExplainerSubject, enlarged
from xaihub.testing.memory import peak_memory, traced

BATCH = 4
# The quick budget is multiplied by up to 32, while there are at most 256 passes, and by half of that: a method may keep
# a block of a few passes in memory, but not all. Fewer than 16 further passes show nothing.
LEAST_TIMES, MOST_TIMES = 4, 32
LEAST_PASSES, MOST_PASSES = 16, 256
WHOLE_BUDGETS = (128, 192)  # forward passes, with the default parameters
CALLS = 12
LEAST_CALLS = 5
SECONDS = 0.3


@check("explainer", advice="use `xaihub.masking`, or split the work into batches of `batch_rows(model)` rows")
def memory_is_bounded(subject: ExplainerSubject) -> None:
    """No pass has more rows than `model.runtime.batch_size`; each keeps less than half a channel of the image."""
    subject.require_a_call()
    trial = subject.trials[subject.home]
    passes = float(trial.explanations[0].metadata["forward_passes"]) if trial.worked else 1
    times = int(min(MOST_TIMES, max(LEAST_TIMES, MOST_PASSES // max(passes, 1))))
    large = _Meter(subject, enlarged(subject, times // 2))
    require(large.rows <= BATCH, f"with batch size {BATCH}, one pass had {large.rows} rows")
    larger = _Meter(subject, enlarged(subject, times))
    more = larger.passes - large.passes
    if more >= LEAST_PASSES:
        growth = (larger.peak - large.peak) / more
        require(
            growth < subject.images(1)[0, 0].nbytes / 2,
            f"each further pass keeps {growth / 1024:.0f} KiB until the end",
            advice="create masks and inputs batch by batch, as `masked_forward_passes` does; keep only their scores",
        )


@check("explainer", advice="stop at the budget, or correct the record's `cost`")
def keeps_to_its_budget(subject: ExplainerSubject) -> None:
    """The number of forward passes does not exceed what the record's `cost`, or a parameter `budget`, declares."""
    model = subject.model
    cost = subject.spec.cost if subject.spec is not None else ""
    known = False
    for changed in ({}, enlarged(subject, 2)):
        explainer = subject.make(**changed)
        trial = subject.try_on(model, subject.images(1), explainer=explainer)
        if not trial.worked:
            continue
        limits = {"the record's `cost`": announced(cost, explainer.parameters)}
        if cost == "":
            limits |= {f"the parameter {name!r}": explainer.parameters.get(name) for name in BUDGETS}
        counted = trial.explanations[0].metadata["forward_passes"]
        for what, limit in limits.items():
            if limit is not None:
                known = True
                require(counted <= limit, f"{what} declares {limit:g} forward passes, but it used {counted:g}")
    applies(known, "its record's `cost` is not a formula, and it has no parameter `budget`")


@check("explainer", advice="let `Passes(each=..., extra=..., maximum=...)` describe the passes as they are counted")
def spends_the_budget_it_takes(subject: ExplainerSubject) -> None:
    """A budget of passes, where a parameter is marked with `Passes`, is spent to 2 %; a maximum is not exceeded."""
    item = of_passes(subject.method)
    applies(item is not None, "no parameter is marked with `Passes`, so it cannot be given a budget")
    assert item is not None  # noqa: S101 - for the type checker
    assert item.passes is not None  # noqa: S101
    known, free = False, (item.name, *item.passes.others)  # which the budget determines
    for passes in WHOLE_BUDGETS:
        default = subject.method(**{name: value for name, value in subject.given.items() if name not in free})
        default.name = subject.name
        trial = subject.try_on(subject.model, subject.images(1), explainer=within(default, Budget(passes=passes)))
        if trial.worked:
            known = True
            record = trial.explanations[0].metadata
            counted = record["forward_passes"] + 2 * record["backward_passes"]
            slack = max(0.02 * passes, item.passes.each)
            least = 0 if item.passes.maximum else passes - slack
            require(least <= counted <= passes + slack, f"with a budget of {passes} passes it used {counted:g}")
    applies(known, "it returns no map with the budgets of the kit")


@check("explainer", advice="fill in `ExplainerSpec(summary=..., cost=..., needs=...)`")
def record_is_complete(subject: ExplainerSubject) -> None:
    """The record has a one-line summary, a cost, and what the explainer needs from a model."""
    spec = require_record(subject.spec)
    subject.require_a_call()
    trial = subject.trials[subject.home]
    if trial.worked and trial.explanations[0].metadata["backward_passes"] and spec.needs == ("black-box",):
        require(False, 'its record declares "black-box", but it uses gradients', advice='give needs=("gradients",)')


@check("explainer", advice="keep nothing between calls, on the instance or in a module")
def nothing_is_left_behind(subject: ExplainerSubject) -> None:
    """After twelve calls (fewer if slow) there are no more tensors, modules, hooks, arrays and objects than before."""
    model = subject.model
    explainer = subject.make()
    for seed in range(3):  # what is created once and cached, such as the network's structure, is not a leak
        subject.values(model, subject.images(1, seed=seed), explainer=explainer)
    hooks = _hooks(model.module)
    with _newborn() as newborn, traced() as kept:
        calls, started, sizes = 0, time.perf_counter(), [0]
        while calls < CALLS and (calls < LEAST_CALLS or time.perf_counter() - started < SECONDS):
            subject.try_on(model, subject.images(1, seed=calls + 10), explainer=explainer)
            calls += 1
            sizes.append(kept())
        for kind in (Tensor, nn.Module):
            left = newborn(kind)
            name = "modules" if kind is nn.Module else "tensors"
            require(left < calls, f"after {calls} calls there are {left} more {name}")
        growth = median(after - before for before, after in pairwise(sizes))  # what is cached once is no growth
        limit = subject.images(1)[0, 0].nbytes / 2
        if growth >= limit:  # unless it is garbage, or was cached once
            gc.collect()
            before = kept()
            for seed in range(LEAST_CALLS):
                subject.try_on(model, subject.images(1, seed=seed + 50), explainer=explainer)
            gc.collect()
            growth = (kept() - before) / LEAST_CALLS
        require(growth < limit, f"each call keeps {growth / 1024:.0f} KiB of arrays and other objects")
    more = _hooks(model.module) - hooks
    require(more <= 0, f"after {calls} calls the network has {more} more hooks")


def _hooks(network: nn.Module) -> int:
    tables = [vars(module).items() for module in network.modules()]
    return sum(len(table) for items in tables for name, table in items if name.endswith("_hooks"))


class _Meter:
    """Rows of the largest pass, number of passes, and peak memory in bytes of one explanation."""

    def __init__(self, subject: ExplainerSubject, changed: dict[str, Any]) -> None:
        self.rows = self.passes = self.peak = 0
        self._inside = False
        model = subject.model
        model.runtime = Runtime(batch_size=BATCH)
        subject.try_on(model, subject.images(1))  # what is found once is found before
        explainer = subject.make(**changed)
        handle = model.module.register_forward_hook(self._look)
        subject.try_on(model, subject.images(1), explainer=explainer, around=self._measured)
        handle.remove()

    @contextmanager
    def _measured(self) -> Iterator[None]:
        self._inside = True
        with peak_memory() as peak:
            try:
                yield
            finally:
                self.peak = max(self.peak, peak())

    def _look(self, _module: nn.Module, inputs: tuple[Any, ...], _output: Any) -> None:
        if self._inside:
            self.rows = max(self.rows, len(inputs[0]))
            self.passes += len(inputs[0])


@contextmanager
def _newborn() -> Iterator[Any]:
    """Yield a function that counts the live objects of a type that were created inside."""
    gc.freeze()  # excludes existing objects, which makes collecting and counting fast
    try:

        def count(kind: type) -> int:
            gc.collect()
            return len(_alive(kind))

        yield count
    finally:
        gc.unfreeze()


def _alive(kind: type) -> list[Any]:
    return [item for item in gc.get_objects() if isinstance(item, type) is False and issubclass(type(item), kind)]
