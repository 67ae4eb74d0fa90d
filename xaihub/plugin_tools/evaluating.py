"""A worker: computes the tasks of an evaluation (see `xaihub.evaluation.engine`), or explains images."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from xaihub.api.jobs import PURPOSE
from xaihub.errors import EngineError, XaihubError
from xaihub.evaluation.config import Config
from xaihub.evaluation.isolation import Isolation, apply_settings, error_of, packed, unpacked
from xaihub.evaluation.keys import Keys
from xaihub.evaluation.plan import load_one, methods
from xaihub.evaluation.tasks import Task, pack_records, unpack_task
from xaihub.evaluation.work import Work
from xaihub.hub import Hub
from xaihub.hub.worker import connected, serve
from xaihub.models.model import Model
from xaihub.models.tuning import choices_of_run
from xaihub.plugin_tools.explaining import ExplainingWorker
from xaihub.plugin_tools.onefile import register_file

log = logging.getLogger(__name__)


class _Worker:
    """What a worker keeps between tasks: its hub, its models, and the last images."""

    def __init__(self, hub: Hub, message: Mapping[str, Any]) -> None:
        self._hub = hub
        self._config = msgspec.convert(message["config"], type=Config)
        self._explainers, metrics = methods(self._hub, self._config)
        self._work = Work(self._config, self._explainers, metrics, Isolation(timeout=message["timeout"]))
        self._models: dict[int, tuple[Model, Keys]] = {}
        self._choices = message["choices"]

    def do(self, data: bytes) -> bytes:
        """Return the answer to a task; an error that concerns more than the task is one, and ends the evaluation."""
        try:
            task = unpack_task(data)
            model, keys = self._model(task.model)
            self._check(task, keys)
            log.info("%s on %s", task.source, model.name)
            with choices_of_run(self._choices) as self._choices:
                return pack_records(self._work.do(task, model))
        except XaihubError as error:
            return packed(error_of(error), {})

    def _model(self, number: int) -> tuple[Model, Keys]:
        if number not in self._models:
            model = load_one(self._hub, self._config, self._config.models[number])
            self._models[number] = model, Keys(self._hub, self._config, model, self._explainers)
        return self._models[number]

    def _check(self, task: Task, keys: Keys) -> None:
        """Check that model, plugins and files are here what they are where the results are stored."""
        for wanted in task.wanted:
            if keys.digest(wanted.explainer, task.sha256, task.label) != wanted.digest:
                who = f"{self._explainers[wanted.explainer].name} on {self._config.models[task.model]}"
                raise EngineError(
                    f"a worker would compute {who} with other weights, settings or versions than this process",
                    hint="install the same versions of xaihub, torch, timm and the plugins there",
                )


def start(settings: bytes) -> Callable[[bytes], bytes]:
    """Return what computes tasks; see `xaihub.evaluation.engine.Start`."""
    message, _ = unpacked(settings)
    apply_settings(message["torch"])
    hub = Hub()
    for file in message["files"]:
        register_file(hub.host, file)
    if message.get("purpose") == PURPOSE:
        return ExplainingWorker(hub, message).do
    return _Worker(hub, message).do


class _Answers:
    """Answers of a process: the first request starts the worker, the others are tasks."""

    def __init__(self) -> None:
        self._do: Callable[[bytes], bytes] | None = None

    def __call__(self, request: bytes) -> bytes:
        if self._do is not None:
            return self._do(request)
        try:
            self._do = start(request)
        except XaihubError as error:
            return packed(error_of(error), {})
        return packed({}, {})


if __name__ == "__main__":
    pipe, parent = connected()
    serve(pipe, _Answers(), parent=parent)
