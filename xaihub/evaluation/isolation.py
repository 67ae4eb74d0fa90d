"""Explanations and scores by plugins of third parties, computed in a worker process where that is possible.

Results are equal bit for bit to those computed in this process: the worker loads the same model, which is checked by
the hashes of weights and structure, and receives the same inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from types import TracebackType
from typing import Any

from torch import Tensor

from xaihub.errors import PluginError, XaihubError
from xaihub.evaluation.worker import STARTING, SUPPORTED, Broken, Worker, settings_of_torch
from xaihub.explainers.explainer import Explainer
from xaihub.explainers.explanation import Explanation
from xaihub.explainers.target import Target
from xaihub.hub import DEFAULT_TIMEOUT
from xaihub.metric import Case, Measurement, Metric
from xaihub.models.model import Model
from xaihub.models.passes import Counts
from xaihub.models.process import fenced
from xaihub.params import Parametrised
from xaihub.records import canonical


class Isolation:
    """Runs methods: those of third parties in a worker, all others in this process.

    A method stays in this process if its plugin was registered by hand, if the model was not loaded by name, or on
    Windows. With a timeout of 0, all do.

    Attributes:
        spent: The passes that were made in workers.
    """

    def __init__(self, *, timeout: float = DEFAULT_TIMEOUT) -> None:
        """Start nothing yet; `timeout` is the limit for one explanation or score in seconds."""
        self.timeout = timeout
        self.spent = Counts()
        self._worker: Worker | None = None
        self._ready: dict[str, bool] = {}  # models and methods, whether the worker has the same
        self._files: list[str] = []
        self._last: tuple[object, object] = (None, None)
        self._number = 0

    def __enter__(self) -> Isolation:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the worker."""
        if self._worker is not None:
            self._worker.close()

    def explain(
        self, explainer: Explainer, model: Model, inputs: Tensor, target: Target, *, seed: int, logits: Tensor | None
    ) -> Explanation:
        """Explain one image, (1, C, H, W), with its (1, K) `logits` if known.

        Raises:
            XaihubError: The explainer refuses or fails, in whatever way.
        """
        with fenced(explainer):
            if not self._takes(model, explainer):
                return explainer.explain(model, inputs, target, seed=seed, logits=logits)[0]
        message = {"do": "explain", "model": _asked(model), "explainer": _named(explainer), "seed": seed}
        tensors = {"inputs": inputs} | ({} if logits is None else {"logits": logits})
        answer, found = self._ask({**message, "target": asdict(target)}, tensors, explainer)
        return Explanation.from_dict(answer["record"], found)

    def measure(self, metric: Metric, case: Case) -> tuple[Measurement, Counts]:
        """Score one explanation; see `Metric.measure`.

        Raises:
            XaihubError: The metric refuses or fails, in whatever way.
        """
        methods = [metric, *([] if case.explainer is None else [case.explainer])]
        with fenced(metric):
            if not self._takes(case.model, *methods):
                return metric.measure(case)
        scene = case.scene
        self._number += self._last[1] is not case
        same = self._last[0] is scene
        self._last = (scene, case)
        pool = scene.pool if metric.needs_pool else ()
        message = {
            "do": "score", "model": _asked(case.model), "metric": _named(metric), "seed": case.seed,
            "explainer": None if case.explainer is None else _named(case.explainer), "case": self._number,
            "same_scene": same, "target": asdict(scene.target.fixed()), "record": case.explanation.to_dict(),
            "pool": [label for _, label in pool],
        }  # fmt: skip
        tensors = {
            "image": scene.image,
            "logits": scene.logits,
            **({} if scene.truth is None else {"truth": scene.truth}),
            **{f"pool.{place}": image for place, (image, _) in enumerate(pool)},
            **{f"map.{name}": tensor for name, tensor in case.explanation.tensors().items()},
        }
        blamed = metric if case.explainer is None or not metric.origin.builtin else case.explainer
        answer, _ = self._ask(message, tensors, blamed)
        curve = None if answer["curve"] is None else tuple(answer["curve"])
        found = Measurement(value=answer["value"], curve=curve, details=answer["details"])
        return found, Counts(*answer["charged"])

    def _takes(self, model: Model, *methods: Parametrised) -> bool:
        """Whether a worker is needed, and has the same model and methods."""
        foreign = [method for method in methods if not method.origin.builtin]
        if not foreign or not self.timeout or not SUPPORTED or model.loaded is None:
            return False
        if not all(method.origin.distribution or method.origin.sha256 for method in foreign):
            return False
        wanted = {
            "model": _asked(model),
            "weights": model.weights_hash,
            "structure": model.structure_hash,
            "methods": [[method.noun, method.name, method.origin.record()] for method in methods],
        }
        key = canonical(wanted)
        if key not in self._ready:
            files = model.loaded["plugin_files"]
            if self._worker is None or not set(files) <= set(self._files):
                self.__exit__(None, None, None)
                self._files = [*dict.fromkeys([*self._files, *files])]
                self._worker = Worker({"files": self._files, **settings_of_torch()})
            try:
                answer, _ = self._worker.ask({"do": "load", **wanted}, {}, timeout=STARTING)
                self._ready[key] = bool(answer["same"])
            except Broken as error:
                raise PluginError(f"{foreign[0].described} {error.message}", hint=error.hint) from error
            except XaihubError:  # as in an environment that the worker does not share
                self._ready[key] = False
        return self._ready[key]

    def _ask(
        self, message: Mapping[str, Any], tensors: Mapping[str, Tensor], by: Parametrised
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        assert self._worker is not None  # noqa: S101 - `_takes` made it
        try:
            if self._worker.stopped:  # the next one loads the model again, within a limit of its own
                self._worker.ask({"do": "load", "model": message["model"], "methods": []}, {}, timeout=STARTING)
            answer, found = self._worker.ask(message, tensors, timeout=self.timeout)
        except Broken as error:
            raise PluginError(f"{by.described} {error.message}", hint=error.hint) from error
        self.spent = self.spent + Counts(*answer["spent"])
        return answer, found


def _asked(model: Model) -> dict[str, Any]:
    arguments = {name: value for name, value in (model.loaded or {}).items() if name != "plugin_files"}
    return {"shown": model.name, "arguments": arguments, "runtime": model.runtime.record()}


def _named(method: Parametrised) -> list[Any]:
    return [method.name, method.parameters]
