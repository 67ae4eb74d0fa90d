"""What results depend on: contents of files, versions of code, and for scores what else the metric reads."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from xaihub.evaluation.plan import Plan
from xaihub.evaluation.results import ScoreKey
from xaihub.explainers.explainer import Explainer
from xaihub.hub import Hub
from xaihub.hub.host import OWN_DISTRIBUTION
from xaihub.metric import Metric
from xaihub.records import canonical

POOL = 16  # images that a metric may combine an image with


class Dependence:
    """The basis of each score of a plan: what it depends on in addition to its map and the metric's parameters.

    A basis names the code of a metric that is not shipped with xaihub, the mask or boxes of the image if the metric
    declares `needs_truth`, and the images it may be combined with if the metric declares `needs_pool`. The rest
    (model, preprocessing, seed, versions of xaihub and torch) is part of the explanation's key.
    """

    def __init__(self, hub: Hub, plan: Plan) -> None:
        """Compute nothing yet."""
        self._plan = plan
        self._metrics = [
            (metric, canonical(with_files(metric.parameters)), _plugin_code(hub.metrics, hub, metric))
            for metric in plan.metrics
        ]
        self._positions = {source: position for position, source in enumerate(plan.images)}
        self._checksums: dict[str, str] = {}
        self._scores: dict[str, list[ScoreKey]] = {}

    def all_scores(self) -> dict[str, list[ScoreKey]]:
        """Return the scores that the plan wants of each explanation, by image."""
        return {source: self.scores(source) for source in self._plan.images}

    def scores(self, source: str) -> list[ScoreKey]:
        """Return the scores that the plan wants of each explanation of one image."""
        if source in self._scores:
            return self._scores[source]
        found = self._scores[source] = []
        for metric, parameters, version in self._metrics:
            parts: dict[str, Any] = {"code": version} if version else {}
            if metric.needs_truth:
                parts["truth"] = self._truth(source)
            if metric.needs_pool:
                parts["pool"] = self._pool(source)
            found.append(ScoreKey(metric.name, parameters, canonical(parts)))
        return found

    def checksum(self, path: str) -> str:
        """Return the sha256 of a file, or "" if it cannot be read."""
        if path not in self._checksums:
            self._checksums[path] = ""
            with suppress(OSError, ValueError):
                self._checksums[path] = _of_file(Path(path))
        return self._checksums[path]

    def _truth(self, source: str) -> str | None:
        if source in self._plan.masks:
            return f"mask {self.checksum(str(self._plan.masks[source]))}"
        boxes = self._plan.boxes.get(source)
        return None if boxes is None else f"boxes {_digest(boxes)}"

    def _pool(self, source: str) -> str:
        around = neighbours(self._plan.images, self._positions[source])
        return _digest([self.checksum(neighbour) for neighbour in around])


def neighbours(images: Sequence[str], position: int) -> list[str]:
    """Return the images that the one at a position may be combined with: the next ones, wrapping around."""
    count = len(images)
    return [images[(position + step) % count] for step in range(1, min(POOL, count - 1) + 1)]


def with_files(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters, plus the sha256 of each file they name: results depend on its contents."""
    found = dict(parameters)
    for name, value in parameters.items():
        file = Path(value.removeprefix("image:")) if isinstance(value, str) else None
        if file is not None and file.is_file():
            found[f"{name}.sha256"] = _of_file(file)
    return found


def code(hub: Hub, explainer: Explainer) -> str:
    """Return the software versions that an explanation's values depend on."""
    versions = [
        f"xaihub {metadata.version(OWN_DISTRIBUTION)}",
        f"torch {torch.__version__.partition('+')[0]}",
        f"timm {metadata.version('timm')}",
        _plugin_code(hub.explainers, hub, explainer),
    ]
    return ", ".join(version for version in versions if version)


def _plugin_code(registry: Any, hub: Hub, item: Explainer | Metric) -> str:
    """Return version and source of an item of a third-party plugin; "" for built-in plugins, versioned with xaihub."""
    plugin = registry.get(item.name).plugin
    info = next((info for info in hub.host.plugins if info.name == plugin), None)
    if info is None or info.builtin:
        return ""
    return f"{info.distribution or info.name} {info.version} {_source(type(item))}".strip()


@cache
def _source(kind: type) -> str:
    """Return a short checksum of the file that defines a class: a single-file plugin has no version."""
    with suppress(OSError, TypeError):
        return hashlib.sha256(Path(inspect.getfile(kind)).read_bytes()).hexdigest()[:12]
    return ""


def _of_file(file: Path) -> str:
    if not file.is_file():  # a pipe would block, and a device never ends
        raise OSError(f"{file} is not a regular file")
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _digest(value: Any) -> str:
    return hashlib.sha256(canonical(value).encode()).hexdigest()
