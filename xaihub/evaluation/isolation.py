"""Explanations, scores and rankings by plugins of third parties, computed in a worker process where that is possible.

Parent and worker exchange JSON and safetensors. Results are equal bit for bit to those computed in this process: the
worker loads the same model, which is checked by the hashes of weights and structure, and receives the same inputs.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from xaihub import errors
from xaihub.errors import PluginError, XaihubError
from xaihub.explainers.explainer import Explainer
from xaihub.explainers.explanation import Explanation
from xaihub.explainers.target import Target
from xaihub.hub import DEFAULT_TIMEOUT
from xaihub.hub.quarantine import Notes
from xaihub.hub.worker import SUPPORTED, Lost, Worker, spawned
from xaihub.metric import Case, Measurement, Metric
from xaihub.models.model import Model
from xaihub.models.passes import Counts
from xaihub.models.process import fenced
from xaihub.params import Parametrised
from xaihub.ranking.explainer import GlobalExplainer
from xaihub.ranking.explanation import GlobalExplanation
from xaihub.records import canonical

SERVER = "xaihub.plugin_tools.serving"
STARTING = 300.0  # seconds for starting a worker and for loading a model there


class _Pool:
    """Keeps at most one worker that no isolation uses: starting one costs seconds."""

    def __init__(self) -> None:
        self._kept: tuple[Worker, dict[str, str]] | None = None
        atexit.register(self.close)
        if hasattr(os, "register_at_fork"):  # a forked process must leave the worker to its parent
            os.register_at_fork(after_in_child=self.forget)

    def take(self) -> tuple[Worker, dict[str, str]]:
        """Return the kept worker with the checksums of the files that it imported, or one that has imported none."""
        kept, self._kept = self._kept, None
        if kept is not None:
            if not kept[0].stopped and all(_checksum(file) == known for file, known in kept[1].items()):
                return kept
            kept[0].close()
        return Worker(partial(spawned, SERVER)), {}

    def keep(self, worker: Worker, files: dict[str, str]) -> None:
        """Keep a worker, in place of another."""
        self.close()
        self._kept = worker, files

    def forget(self) -> None:
        """Keep none, and end none."""
        self._kept = None

    def close(self) -> None:
        """End the kept worker."""
        if self._kept is not None:
            self._kept[0].close()


def _checksum(file: str) -> str:
    with suppress(OSError):
        return hashlib.sha256(Path(file).read_bytes()).hexdigest()
    return ""


_pool = _Pool()


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
        self._notes = Notes()
        self._worker: Worker | None = None
        self._ready: dict[str, bool] = {}  # models and methods, whether the worker has the same
        self._files: dict[str, str] = {}  # that the worker has imported, with their checksums
        self._last: tuple[object, object] = (None, None)
        self._number = 0

    def __enter__(self) -> Isolation:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Keep the worker for the next isolation in this process."""
        if self._worker is not None:
            _pool.keep(self._worker, self._files)

    def explain(
        self, explainer: Explainer, model: Model, inputs: Tensor, target: Target, *, seed: int, logits: Tensor | None
    ) -> Explanation:
        """Explain one image, (1, C, H, W), with its (1, K) `logits` if known.

        Raises:
            XaihubError: The explainer refuses or fails, in whatever way.
        """
        with fenced(explainer):
            if not self._takes(model, explainer):
                with self._notes.running(explainer):
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
                with self._notes.running(metric):
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

    def rank(
        self,
        explainer: GlobalExplainer,
        model: Model,
        batches: Iterable[Tensor],
        labels: Tensor | None,
        *,
        sources: Sequence[str],
        seed: int,
        page: int | None = None,
    ) -> GlobalExplanation:
        """Rank the features of a model, see `GlobalExplainer.explain`; a worker reads the `sources` of the batches.

        Raises:
            XaihubError: The explainer refuses or fails, in whatever way.
        """
        with fenced(explainer):
            if not self._takes(model, explainer):
                with self._notes.running(explainer):
                    return explainer.explain(model, batches, labels, seed=seed)
        message = {"do": "rank", "model": _asked(model), "explainer": _named(explainer), "seed": seed}
        tensors = {} if labels is None else {"labels": labels}
        message |= {"sources": [*map(os.path.abspath, sources)], "page": page}
        answer, _ = self._ask(message, tensors, explainer)
        return GlobalExplanation.from_dict(answer["record"])

    def _takes(self, model: Model, *methods: Parametrised) -> bool:
        """Whether a worker is needed, and has the same model and methods."""
        foreign = [method for method in methods if not method.origin.builtin]
        if not foreign or not self.timeout or not SUPPORTED or model.loaded is None or os.environ.get("XAIHUB_DEBUG"):
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
            if self._worker is None:
                self._worker, self._files = _pool.take()
            self._files |= {file: _checksum(file) for file in model.loaded["plugin_files"]}
            try:
                answer = self._load(wanted, foreign[0])
                self._ready[key] = bool(answer["same"])
            except XaihubError as error:
                if isinstance(error.__cause__, Lost):
                    raise
                self._ready[key] = False  # as in an environment that the worker does not share
        return self._ready[key]

    def _load(self, wanted: Mapping[str, Any], by: Parametrised) -> dict[str, Any]:
        """Let the worker load a model, in surroundings like those of this process."""
        around = {
            "torch": settings_of_torch(),
            "environ": dict(os.environ),
            "folder": str(Path.cwd()),
            "path": sys.path,
        }
        answer, _ = self._exchange({"do": "load", "around": around, **wanted}, {}, STARTING, by)
        return answer

    def _ask(
        self, message: Mapping[str, Any], tensors: Mapping[str, Tensor], by: Parametrised
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        assert self._worker is not None  # noqa: S101 - `_takes` made it
        if self._worker.stopped:  # the next one loads the model again, within a limit of its own
            self._load({"model": message["model"], "methods": []}, by)
        answer, found = self._exchange(message, tensors, self.timeout, by)
        self.spent = self.spent + Counts(*answer["spent"])
        return answer, found

    def _exchange(
        self, message: Mapping[str, Any], tensors: Mapping[str, Tensor], timeout: float, by: Parametrised
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        assert self._worker is not None  # noqa: S101 - `_takes` made it
        try:
            answer, found = unpacked(self._worker.ask(packed(message, tensors), timeout=timeout))
        except Lost as lost:
            hint = "--timeout sets the limit" if "finish" in str(lost) else ""
            raise PluginError(f"{by.described} {lost}", hint=hint) from lost
        if answer.get("last"):  # the next request starts another one
            self._worker.close()
        raise_error(answer)
        return answer, found


def error_of(error: XaihubError) -> dict[str, Any]:
    """Return an error as JSON types."""
    return {"error": type(error).__name__, "message": error.message, "hint": error.hint}


def raise_error(answer: Mapping[str, Any]) -> None:
    """Raise the error that an answer holds, if there is one.

    Raises:
        XaihubError: As `error_of` packed it; a `PluginError` if its type is not known here.
    """
    if "error" in answer:
        named = [getattr(errors, name) for name in errors.__all__ if name == answer["error"]]
        raise (named or [PluginError])[0](answer["message"], hint=answer["hint"])


def packed(message: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> bytes:
    """Return a message with tensors as bytes."""
    # Random numbers are drawn in the order of the memory, so that it has to be the same on the other side.
    strides = {name: one.stride() for name, one in tensors.items() if not one.is_contiguous() and all(one.stride())}
    text = json.dumps([message, strides], default=str).encode()
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return len(text).to_bytes(8, "little") + text + save(whole)


def unpacked(data: bytes) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return what `packed` packed."""
    size = 8 + int.from_bytes(data[:8], "little")
    (message, strides), tensors = json.loads(data[8:size]), load(data[size:])
    for name, stride in strides.items():
        whole = tensors[name]
        tensors[name] = torch.empty_strided(whole.shape, stride, dtype=whole.dtype).copy_(whole)
    return message, tensors


def settings_of_torch() -> dict[str, Any]:
    """Return what the results of a network depend on in this process, as JSON types."""
    return {
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "precision": torch.get_float32_matmul_precision(),
        "benchmark": torch.backends.cudnn.benchmark,
    }


def settle_in(around: Mapping[str, Any]) -> None:
    """Give this process the surroundings of the one that asks."""
    os.environ.clear()
    os.environ.update(around["environ"])
    os.chdir(around["folder"])
    sys.path[:] = around["path"]
    apply_settings(around["torch"])


def apply_settings(settings: Mapping[str, Any]) -> None:
    """Apply what `settings_of_torch` returned in another process."""
    torch.set_num_threads(settings["threads"])
    torch.use_deterministic_algorithms(settings["deterministic"])
    torch.set_float32_matmul_precision(settings["precision"])
    torch.backends.cudnn.benchmark = settings["benchmark"]


def _asked(model: Model) -> dict[str, Any]:
    arguments = dict(model.loaded or {})
    files = arguments.pop("plugin_files", [])
    return {"shown": model.name, "files": files, "arguments": arguments, "runtime": model.runtime.record()}


def _named(method: Parametrised) -> list[Any]:
    budget = [method.granted.typed] if isinstance(method, Explainer) and method.granted else []
    return [method.name, method.parameters, *budget]
