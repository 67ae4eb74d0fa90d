"""Conformance checks of plugins: run the kit on everything that a plugin registered, in a worker process."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from importlib import import_module
from typing import Any

from xaihub.api.parameters import Setting, assign
from xaihub.errors import ParameterError, UnknownName, did_you_mean
from xaihub.hub import Hub
from xaihub.hub.host import PluginInfo
from xaihub.hub.worker import SUPPORTED, Child, Lost, Worker, forked
from xaihub.params import convert
from xaihub.plugin_tools.overview import find as find_plugins
from xaihub.plugin_tools.plugin_checks import PluginSubject
from xaihub.specs import AdapterSpec, ModelCard, Spec
from xaihub.testing.catalogue import Check, CheckResult, Kind, run
from xaihub.testing.kit import (
    LOADS,
    check_names,
    checks,
    find,
    kind_of,
    load_check,
    registries,
    subject_of,
    unknown_check,
)

__all__ = ["CheckResult", "check_plugin", "planned"]

PRELOADED = ("torch", "timm.models")  # by the program, so that each worker has them from its start
CRASHES = 3  # after so many, the other checks of a subject are not run


@dataclass(frozen=True)
class Task:
    """One check of one plugin or record."""

    about: PluginInfo | Spec
    kind: Kind
    item: Check

    def result(self, **facts: Any) -> CheckResult:
        """Return a result that the check did not give itself."""
        known: dict[str, Any] = {"subject": self.about.name, "kind": self.kind, "check": self.item.name}
        return CheckResult(**{**known, "plugin": getattr(self.about, "plugin", self.about.name), **facts})


def planned(name: str, hub: Hub, only: Iterable[str] = ()) -> list[Task]:
    """Return the checks of a plugin, of all plugins of a distribution, or of what is registered under one name.

    Raises:
        UnknownName: Nothing is called `name`, or a check in `only` does not exist.
    """
    wanted = list(only)
    for check in wanted:
        if check not in check_names():
            raise unknown_check(check)
    infos, specs = _named(name, hub)
    things: list[tuple[PluginInfo | Spec, Kind]] = [(info, "plugin") for info in infos]
    things += [(spec, kind_of(spec)) for spec in specs]
    tasks = []
    for thing, kind in things:
        items = checks(kind, wanted)
        if kind != "plugin" and (items or LOADS in wanted):
            items = [load_check(kind), *items]
        tasks += [Task(thing, kind, item) for item in items]
    return tasks


def check_plugin(
    name: str,
    hub: Hub,
    *,
    only: Iterable[str] = (),
    settings: Sequence[Setting] = (),
    each: Callable[[CheckResult], None] | None = None,
    isolated: bool = False,
    seconds: float = 120.0,
) -> list[CheckResult]:
    """Check a plugin, all of a distribution, or one explainer, metric, objective, baseline, head, adapter or model.

    Args:
        name: The name; if a plugin and one of its methods share it, the whole plugin is checked.
        hub: The hub.
        only: The checks to run; by default all.
        settings: Parameters of the checked methods, instead of the kit's small budgets.
        each: Called with every result as soon as it is available.
        isolated: Run the checks in a worker process, so that a plugin can end or block only that; not on Windows.
        seconds: Time limit of each check in the worker.

    Raises:
        UnknownName: Nothing is called `name`, or a check in `only` does not exist.
        ParameterError: No checked method has one of the parameters, or its value has the wrong type or range.
    """
    only = list(only)
    tasks = planned(name, hub, only)
    session = _Session(tasks, hub, list(settings))
    found: list[CheckResult] = []
    with _isolated(session.answer, seconds) if isolated and SUPPORTED else nullcontext(session.answer) as answer:
        if settings and "error" in (wrong := _asked(answer, len(tasks))):
            raise ParameterError(wrong["error"])
        for result in _results(tasks, answer):
            if result.check == LOADS and result.outcome == "passed" and only and LOADS not in only:
                continue
            found.append(result)
            if each is not None:
                each(result)
    return found


@contextmanager
def _isolated(answer: Callable[[int], dict[str, Any]], seconds: float) -> Iterator[Callable[[int], dict[str, Any]]]:
    """Yield what runs `answer` in a worker, for at most `seconds` each time, or raises `Lost`."""

    def work(request: bytes) -> bytes:
        import torch

        torch.set_num_threads(1)  # a pool of threads does not survive the fork; small networks gain nothing from it
        return json.dumps(answer(int(request))).encode()

    def start() -> Child:
        for name in PRELOADED:
            import_module(name)
        return forked(work)

    with Worker(start) as worker:
        yield lambda task: json.loads(worker.ask(str(task).encode(), timeout=seconds))


def _asked(answer: Callable[[int], dict[str, Any]], task: int) -> dict[str, Any]:
    try:
        return answer(task)
    except Lost:
        return {}  # the check `loads` of what cannot be loaded reports it


def _results(tasks: Sequence[Task], answer: Callable[[int], dict[str, Any]]) -> Iterator[CheckResult]:
    """Run the checks in order; after one that loads or ends nothing, the other checks of the subject are not run."""
    broken: set[int] = set()
    late: dict[int, str] = {}
    crashes: Counter[int] = Counter()
    for number, task in enumerate(tasks):
        subject = id(task.about)
        if subject in broken:
            continue
        if subject in late:
            yield task.result(outcome="not applicable", advice=f"not run, because it {late[subject]}")
            continue
        started = time.perf_counter()
        try:
            result = CheckResult(**answer(number))
        except Lost as lost:
            seconds = time.perf_counter() - started
            result = task.result(outcome="failed", advice=f"it {lost}: {task.item.advice}", seconds=seconds)
            crashes[subject] += 1
            if "finish" in str(lost) or crashes[subject] == CRASHES:
                late[subject] = f"{lost} in {task.item.name!r}"
        if task.item.name == LOADS and task.kind != "plugin" and result.outcome != "passed":
            broken.add(subject)
        yield result


class _Session:
    """Creates subjects when they are first needed, and runs checks of them by number."""

    def __init__(self, tasks: Sequence[Task], hub: Hub, settings: list[Setting]) -> None:
        self._tasks, self._hub, self._settings = tasks, hub, settings
        self._subjects: dict[int, Any] = {}

    def answer(self, number: int) -> dict[str, Any]:
        """Return the result of a check, or after the last one whether the settings are valid, as JSON types."""
        if number == len(self._tasks):
            try:
                _ = self._given
            except ParameterError as error:
                return {"error": str(error)}
            return {}
        task = self._tasks[number]
        # A subject is made within the check, which reports what goes wrong there.
        item = replace(task.item, function=lambda _: task.item.function(self._subject(task)))
        result = run(item, None, task.about.name)
        return asdict(replace(result, plugin=task.result(outcome="passed").plugin))

    def _subject(self, task: Task) -> Any:
        key = id(task.about)
        if key not in self._subjects:
            if isinstance(task.about, PluginInfo):
                self._subjects[key] = PluginSubject(task.about, self._hub)
            else:
                self._subjects[key] = subject_of(task.about, self._hub, self._given.get(key))
        return self._subjects[key]

    @cached_property
    def _given(self) -> dict[int, dict[str, Any]]:
        """The parameters of each record that takes some, by the record's id."""
        if not self._settings:
            return {}
        every = {id(task.about): task.about for task in self._tasks}
        specs = [spec for spec in every.values() if isinstance(spec, Spec) and not _fixed(spec)]
        given = zip(specs, assign(self._settings, specs), strict=True)
        return {id(spec): convert(spec.load(), values, who=spec.name) for spec, values in given}


def _fixed(spec: Spec) -> bool:
    return isinstance(spec, (ModelCard, AdapterSpec)) or kind_of(spec) == "baseline"


def _named(name: str, hub: Hub) -> tuple[list[PluginInfo], list[Spec]]:
    """Return the plugins called `name` with everything that they registered, or the records called `name`."""
    try:
        infos = find_plugins(hub.host, name)
    except UnknownName as error:
        if found := find(name, hub):
            return [], found
        known = [spec.name for registry in registries(hub) for spec in registry]
        known += [word for info in hub.host.plugins for word in (info.name, info.distribution) if word]
        hint = did_you_mean(name, known) or "xaihub list shows every name"
        raise UnknownName(f"no plugin, explainer, metric or model is named {name!r}", hint=hint) from error
    names = {info.name for info in infos}
    return infos, [spec for registry in registries(hub) for spec in registry if spec.plugin in names]
