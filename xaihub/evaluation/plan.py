"""What an evaluation run is to do: read, checked as a whole before any work starts."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
import torch
from torch import Tensor

from xaihub.errors import ExplainerRefused, InputError, ParameterError, XaihubError
from xaihub.explainers.explainer import Explainer
from xaihub.explainers.target import Target
from xaihub.hub import DEFAULT_MODEL, Hub, pick_device
from xaihub.images import find_images
from xaihub.masking import BaselineName, make_removal
from xaihub.matching import matched
from xaihub.metric import Metric
from xaihub.models.model import Model
from xaihub.params import Parametrised, parameters
from xaihub.records import YamlFile, canonical

__all__ = ["Choice", "Config", "Plan", "check_models", "make_plan", "read_config"]

T = TypeVar("T")

DEFAULT_EXPLAINERS = ("gradcam", "integrated_gradients", "occlusion", "rise")
DEFAULT_METRICS = ("insertion", "deletion", "sparseness", "cost_forward_passes")


class Choice(msgspec.Struct, forbid_unknown_fields=True):
    """An explainer or a metric by name, with parameters that differ from the defaults."""

    name: str
    params: dict[str, Any] = {}


class Config(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """An evaluation run as it is written in a file.

    Attributes:
        images: Files, folders and globs.
        output: The folder of the run.
        models: Model names or card files.
        explainers: Names, or name and params.
        metrics: Names, or name and params.
        controls: Add the control explainers, which see nothing of the model.
        target: What is explained: see `Target.parse`; None is the predicted class.
        labels: A CSV with the columns file and class_index; the labelled class is explained then.
        masks: A folder with one mask image (white on black) a photo, of the same name.
        boxes: A CSV with the columns file, left, top, right, bottom, in pixels of the photo.
        seed: Fixes every random choice.
        device: Where the models run.
        batch_size: Rows a forward pass.
        limit: Take only the first so many images.
    """

    images: Annotated[list[str], msgspec.Meta(min_length=1)]
    output: str = ""
    models: Annotated[list[str], msgspec.Meta(min_length=1)] = msgspec.field(default_factory=lambda: [DEFAULT_MODEL])
    explainers: list[str | Choice] = msgspec.field(default_factory=lambda: list(DEFAULT_EXPLAINERS))
    metrics: list[str | Choice] = msgspec.field(default_factory=lambda: list(DEFAULT_METRICS))
    controls: bool = True
    target: str | int | None = None
    labels: str | None = None
    masks: str | None = None
    boxes: str | None = None
    seed: Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)] = 0
    device: str = "auto"
    batch_size: Annotated[int, msgspec.Meta(ge=1)] | None = None
    limit: Annotated[int, msgspec.Meta(ge=1)] | None = None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A checked run: every name resolved, every parameter converted, every path found.

    Attributes:
        config: What it was made from.
        images: The images' paths.
        explainers: The explainers, controls last.
        controls: Which of them are controls, by name.
        metrics: The metrics.
        labels: The class of each image that has one, by its path.
        masks: The mask image of each image that has one, by its path.
        boxes: (left, top, right, bottom) of each image that has any, by its path.
    """

    config: Config
    images: Sequence[str]
    explainers: Sequence[Explainer]
    controls: frozenset[str]
    metrics: Sequence[Metric]
    labels: Mapping[str, int]
    masks: Mapping[str, Path]
    boxes: Mapping[str, Sequence[tuple[float, float, float, float]]]


def read_config(path: str | Path) -> tuple[Config, YamlFile]:
    """Read a run's YAML file; also return the file, which knows the lines.

    Raises:
        ParameterError: A key is unknown or missing, or a value has the wrong type; names line and key.
    """
    file = YamlFile(path, what="config", error=ParameterError)
    return file.convert(Config, hint="docs/how-to/evaluate.md lists the keys"), file


def make_plan(hub: Hub, config: Config, file: YamlFile | None = None) -> Plan:
    """Check everything that can be checked without running a model.

    Raises:
        XaihubError: A name, parameter or path is wrong; names line and key if `file` is given.
    """
    explainers = [_made(hub.get_explainer, c, file, "explainers", i) for i, c in enumerate(config.explainers)]
    metrics = [_made(hub.get_metric, c, file, "metrics", i) for i, c in enumerate(config.metrics)]
    controls = frozenset(spec.name for spec in hub.explainers if "control" in spec.tags)
    if config.controls:
        named = {explainer.name for explainer in explainers}
        explainers += [hub.get_explainer(name) for name in sorted(controls - named)]
    with _blaming(file, "images"):
        images = find_images(config.images)[: config.limit]
        _check_names(images)
    with _blaming(file, "labels"):
        labels = _labels(config.labels, images)
    with _blaming(file, "masks"):
        masks = _masks(config.masks, images)
    with _blaming(file, "boxes"):
        boxes = _boxes(config.boxes, images)
    for number, metric in enumerate(metrics):
        if metric.needs_truth and not masks and not boxes:
            message = f"metric {metric.name!r} compares with masks or boxes, and none are given"
            hint = "give --masks FOLDER or --boxes FILE"
            raise _complaint(ParameterError(message, hint=hint), file, "metrics", number)
    if not explainers:
        raise _complaint(ParameterError("there is no explainer to judge"), file, "explainers")
    return Plan(
        config=config,
        images=images,
        explainers=_distinct(explainers),
        controls=controls,
        metrics=_distinct(metrics),
        labels=labels,
        masks=masks,
        boxes=boxes,
    )


def check_models(hub: Hub, plan: Plan, file: YamlFile | None = None) -> None:
    """Load each model, and check what cannot be checked without: device, target, labels and ways to hide pixels.

    Raises:
        XaihubError: One of them is wrong; names line and key if `file` is given.
    """
    named: dict[str, str] = {}
    networks: dict[str, str] = {}
    for number, name in enumerate(plan.config.models):
        with _blaming(file, "device"):
            pick_device(plan.config.device)
        with _blaming(file, "models", number):
            model = hub.load_model(name, device=plan.config.device)
            if model.name in named:
                message = f"{named[model.name]!r} and {name!r} are both named {model.name!r}"
                raise ParameterError(message, hint="give one of the cards another name, or each its own run")
            named[model.name] = name
            if len(plan.config.models) > 1:  # a hash of all weights takes a while
                network = canonical([model.weights_hash, model.structure_hash, model.preprocessing.description])
                if network in networks:
                    raise ParameterError(f"{networks[network]!r} and {name!r} are the same network", hint="drop one")
                networks[network] = name
        with _blaming(file, "target"):
            Target.parse(plan.config.target, model.classes)
        with _blaming(file, "labels"):
            for image, label in plan.labels.items():
                if model.classes and label >= len(model.classes):
                    message = f"class {label} of {image!r} is out of range"
                    raise InputError(message, hint=f"{model.name} has {len(model.classes)} classes")
        blank = torch.zeros(model.input_size)
        for key, names in (("explainers", plan.config.explainers), ("metrics", plan.config.metrics)):
            make = hub.get_explainer if key == "explainers" else hub.get_metric
            for place, choice in enumerate(names):
                with _blaming(file, key, place):
                    _check_baselines(model, blank, _made(make, choice, file, key, place))


def _check_baselines(model: Model, blank: Tensor, item: Parametrised) -> None:
    kind: type = type(item)
    for name, parameter in parameters(kind).items():
        value = getattr(item, name)
        if parameter.annotation == BaselineName and isinstance(value, str):
            with suppress(ExplainerRefused):  # a refusal is a result, and recorded with each image
                make_removal(value, model, blank)


def _made(make: Any, choice: str | Choice, file: YamlFile | None, key: str, number: int) -> Any:
    choice = Choice(choice) if isinstance(choice, str) else choice
    try:
        return make(choice.name, **choice.params)
    except XaihubError as error:
        raise _complaint(error, file, key, number) from error


def _distinct(items: Iterable[Any]) -> list[Any]:
    return list({repr((item.name, item.parameters)): item for item in items}.values())


class _blaming:  # noqa: N801 - reads as a statement
    """Turn an error inside into a complaint about a key of the file."""

    def __init__(self, file: YamlFile | None, *keys: str | int) -> None:
        self._file, self._keys = file, keys

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, XaihubError):
            raise _complaint(error, self._file, *self._keys) from error


def _complaint(error: XaihubError, file: YamlFile | None, *keys: str | int) -> XaihubError:
    return error if file is None else file.complaint(error.message, *keys, hint=error.hint)


def _table(path: str | None, columns: Sequence[str]) -> list[tuple[str, Mapping[str, str]]]:
    """Read (file name, row) of a CSV that must have the given columns."""
    if path is None:
        return []
    try:
        with Path(path).open(newline="", encoding="utf-8-sig") as file:  # spreadsheets write a mark at the beginning
            reader = csv.DictReader(file)
            missing = [column for column in columns if column not in (reader.fieldnames or [])]
            if missing:
                raise InputError(f"{path!r} has no column {missing[0]!r}", hint=f"it needs {', '.join(columns)}")
            rows: list[tuple[str, Mapping[str, str]]] = [(row["file"] or "", row) for row in reader]
    except OSError as error:
        raise InputError(f"cannot read {path!r}: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path!r} is no CSV file: {error}") from error
    for number, (name, row) in enumerate(rows, start=2):
        if not name:
            raise InputError(f"{path!r}, line {number}: no file is named")
        for column in columns[1:]:
            try:
                known = math.isfinite(float(row[column]))
            except (TypeError, ValueError):
                known = False
            if not known:
                raise InputError(f"{path!r}, line {number}: {column} is {row[column]!r}, not a number")
    return rows


def _check_names(images: Sequence[str]) -> None:
    for image in images:
        try:
            image.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"the file name {image!r} is not UTF-8, so no record can name it", hint="rename it"
            ) from error


def _labels(path: str | None, images: Sequence[str]) -> dict[str, int]:
    found: list[tuple[str, int]] = []
    for name, row in _table(path, ("file", "class_index")):
        value = float(row["class_index"])
        if value < 0 or value != int(value):
            raise InputError(f"{path!r}: the class of {name!r} is {row['class_index']!r}, not an index")
        found.append((name, int(value)))
    return _of_images(images, found, path)


def _masks(folder: str | None, images: Sequence[str]) -> dict[str, Path]:
    if folder is None:
        return {}
    files = [(os.path.relpath(path, folder), Path(path)) for path in find_images([folder])]
    found = matched(images, files, where=repr(folder), by_stem=True)
    if not found:
        raise InputError(f"no mask in {folder!r} has an image's name")
    return found


def _boxes(path: str | None, images: Sequence[str]) -> dict[str, list[tuple[float, float, float, float]]]:
    found: dict[str, list[tuple[float, float, float, float]]] = {}
    for name, row in _table(path, ("file", "left", "top", "right", "bottom")):
        box = (float(row["left"]), float(row["top"]), float(row["right"]), float(row["bottom"]))
        if box[0] >= box[2] or box[1] >= box[3]:
            raise InputError(f"{path!r}: the box of {name!r} is empty")
        found.setdefault(name, []).append(box)
    return _of_images(images, list(found.items()), path)


def _of_images(images: Sequence[str], listed: Sequence[tuple[str, T]], path: str | None) -> dict[str, T]:
    if path is None:
        return {}
    found = matched(images, listed, where=repr(path), base=Path(path).parent)
    if listed and not found:
        raise InputError(f"no image is named in {path!r}")
    return found
