"""What results depend on: the contents of files, versions of code, and for scores what their metric looks at."""

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

from xaihub import __version__
from xaihub.evaluation.plan import Plan
from xaihub.explainers.explainer import Explainer
from xaihub.hub import Hub
from xaihub.metric import Metric
from xaihub.records import canonical

__all__ = ["Dependence", "code", "neighbours", "with_files"]

POOL = 16  # images after this one that a metric may combine it with


class Dependence:
    """What each score of a plan depends on beside its map and its parameters: its basis.

    A basis names the code of a metric that does not come with xaihub, the truth (mask or boxes) of the image if the
    metric declares `needs_truth`, and the images it may be combined with if it declares `needs_pool`. The rest
    (model, preprocessing, seed, versions of xaihub and torch) is part of the explanation's own key.
    """

    def __init__(self, hub: Hub, plan: Plan) -> None:
        """Compute nothing yet."""
        self._plan = plan
        self._metrics = [
            (metric, (metric.name, canonical(with_files(metric.parameters))), _plugin_code(hub.metrics, hub, metric))
            for metric in plan.metrics
        ]
        self._positions = {source: position for position, source in enumerate(plan.images)}
        self._checksums: dict[str, str] = {}
        self._bases: dict[str, dict[tuple[str, str], str]] = {}

    def bases(self) -> dict[str, dict[tuple[str, str], str]]:
        """Return the basis of each (metric, parameters), for every image of the plan."""
        return {source: self.basis(source) for source in self._plan.images}

    def basis(self, source: str) -> dict[tuple[str, str], str]:
        """Return the basis of each (metric, parameters) for one image."""
        if source in self._bases:
            return self._bases[source]
        found = self._bases[source] = {}
        for metric, score, version in self._metrics:
            parts: dict[str, Any] = {"code": version} if version else {}
            if metric.needs_truth:
                parts["truth"] = self._truth(source)
            if metric.needs_pool:
                parts["pool"] = self._pool(source)
            found[score] = canonical(parts)
        return found

    def checksum(self, path: str) -> str:
        """Return the sha256 of a file, or "" if it cannot be read."""
        if path not in self._checksums:
            self._checksums[path] = ""
            with suppress(OSError, ValueError):
                self._checksums[path] = hashlib.sha256(Path(path).read_bytes()).hexdigest()
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
    """Return the images that the one at a position may be combined with: those after it, in a circle."""
    count = len(images)
    return [images[(position + step) % count] for step in range(1, min(POOL, count - 1) + 1)]


def with_files(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters, and beside each that names a file that file's sha256: results depend on what is in it."""
    found = dict(parameters)
    for name, value in parameters.items():
        file = Path(value.removeprefix("image:")) if isinstance(value, str) else None
        if file is not None and file.is_file():
            found[f"{name}.sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    return found


def code(hub: Hub, explainer: Explainer) -> str:
    """Return the versions that an explanation's values depend on."""
    versions = [
        f"xaihub {__version__}",
        f"torch {torch.__version__.partition('+')[0]}",
        f"timm {metadata.version('timm')}",
        _plugin_code(hub.explainers, hub, explainer),
    ]
    return ", ".join(version for version in versions if version)


def _plugin_code(registry: Any, hub: Hub, item: Explainer | Metric) -> str:
    """Return version and source file of what a plugin brought; "" for what comes with xaihub, whose version says it."""
    plugin = registry.get(item.name).plugin
    info = next((info for info in hub.host.plugins if info.name == plugin), None)
    if info is None or info.builtin:
        return ""
    return f"{info.distribution or info.name} {info.version} {_source(type(item))}".strip()


@cache
def _source(kind: type) -> str:
    """Return a short checksum of the file that a class is written in: a single file has no version."""
    with suppress(OSError, TypeError):
        return hashlib.sha256(Path(inspect.getfile(kind)).read_bytes()).hexdigest()[:12]
    return ""


def _digest(value: Any) -> str:
    return hashlib.sha256(canonical(value).encode()).hexdigest()
