"""What results depend on: contents of files, versions of code, and for scores what else the metric reads."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from xaihub.evaluation.places import checksum
from xaihub.evaluation.plan import Plan
from xaihub.evaluation.results import ScoreKey
from xaihub.explainers.explainer import Explainer
from xaihub.files import rooted
from xaihub.hub import Hub
from xaihub.hub.host import OWN_DISTRIBUTION
from xaihub.metric import Metric
from xaihub.records import canonical

_IMAGE = "image:"
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

    @property
    def everywhere(self) -> list[ScoreKey]:
        """The scores that the plan wants of each explanation whose basis is the same for all images."""
        return [
            self._key(metric, parameters, version, None)
            for metric, parameters, version in self._metrics
            if not (metric.needs_truth or metric.needs_pool)
        ]

    def own(self) -> Iterator[tuple[str, ScoreKey]]:
        """Yield the other wanted scores, with their images."""
        mine = [one for one in self._metrics if one[0].needs_truth or one[0].needs_pool]
        if mine:
            for position, source in enumerate(self._plan.images):
                yield from ((source, self._key(*one, position)) for one in mine)

    def scores(self, position: int) -> list[ScoreKey]:
        """Return the scores that the plan wants of each explanation of one image, in the order of its metrics."""
        return [self._key(*one, position) for one in self._metrics]

    def _key(self, metric: Metric, parameters: str, version: str, position: int | None) -> ScoreKey:
        parts: dict[str, Any] = {"code": version} if version else {}
        if position is not None and metric.needs_truth:
            parts["truth"] = self._truth(position)
        if position is not None and metric.needs_pool:
            parts["pool"] = self._pool(position)
        return ScoreKey(metric.name, parameters, canonical(parts))

    def _truth(self, position: int) -> str | None:
        item = self._plan.images.item(position)
        if item.mask is not None:
            return f"mask {self._plan.images.mask_checksum(position)}"
        return None if item.boxes is None else f"boxes {_digest(item.boxes)}"

    def _pool(self, position: int) -> str:
        around = neighbours(len(self._plan.images), position)
        return _digest([self._plan.images.checksum(neighbour) for neighbour in around])


def neighbours(count: int, position: int) -> list[int]:
    """Return the positions of the images that the one at a position may be combined with: the next ones, in a ring."""
    return [(position + step) % count for step in range(1, min(POOL, count - 1) + 1)]


def with_files(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters, plus the sha256 of each file they name: results depend on its contents."""
    files = {f"{name}.sha256": checksum(path) for name, (path, _) in _files(parameters).items()}
    return {**parameters, **files}


def with_rooted(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters with the absolute paths of the files they name; one without a suffix may be another word."""
    files = _files(parameters).items()
    return {
        **parameters,
        **{name: rooted(path, prefix) for name, (path, prefix) in files if prefix or Path(path).suffix},
    }


def _files(parameters: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Return the path of each file that a parameter names, and what stands before it."""
    texts = {name: value for name, value in parameters.items() if isinstance(value, str)}
    found = {name: (text.removeprefix(_IMAGE), _IMAGE * text.startswith(_IMAGE)) for name, text in texts.items()}
    return {name: pair for name, pair in found.items() if Path(pair[0]).is_file()}


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


def _digest(value: Any) -> str:
    return hashlib.sha256(canonical(value).encode()).hexdigest()
