"""The plan of a run: its configuration with every name, parameter, path and model checked before any work."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xaihub.errors import ExplainerRefused, InputError, ParameterError, UnknownName, XaihubError
from xaihub.evaluation.annotations import Box, read_boxes, read_labels, read_masks
from xaihub.evaluation.config import Choice, Config
from xaihub.explainers.budget import budgeted
from xaihub.explainers.explainer import Explainer
from xaihub.explainers.target import Target
from xaihub.hub import Hub, pick_device
from xaihub.images import find_images
from xaihub.masking import BaselineName, make_removal
from xaihub.metric import Metric
from xaihub.models.model import Model
from xaihub.models.passes import Runtime
from xaihub.models.prompts import aimed
from xaihub.params import Parametrised, parameters
from xaihub.records import YamlFile, canonical
from xaihub.specs import Origin


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A checked run: every name resolved, every parameter converted, every path found.

    Attributes:
        config: The configuration.
        images: The images' paths.
        explainers: The explainers, controls last.
        controls: The names of those that are controls.
        metrics: The metrics.
        labels: The class of each labelled image, by its path.
        masks: The mask file of each image that has one, by its path.
        boxes: The boxes of each image that has any, by its path.
        notes: Which explainers do not spend the budget.
    """

    config: Config
    images: Sequence[str]
    explainers: Sequence[Explainer]
    controls: frozenset[str]
    metrics: Sequence[Metric]
    labels: Mapping[str, int]
    masks: Mapping[str, Path]
    boxes: Mapping[str, Sequence[Box]]
    notes: Sequence[str] = ()

    @property
    def origins(self) -> dict[str, Origin]:
        """The plugins of third parties that it uses, by "explainers/NAME" and "metrics/NAME"."""
        methods = {"explainers": self.explainers, "metrics": self.metrics}
        return {
            f"{kind}/{method.name}": method.origin
            for kind, chosen in methods.items()
            for method in chosen
            if method.origin.plugin and not method.origin.builtin
        }


def make_plan(hub: Hub, config: Config, file: YamlFile | None = None) -> Plan:
    """Check everything that can be checked without a model.

    Raises:
        XaihubError: A name, parameter or path is wrong; names line and key if `file` is given.
    """
    explainers = [_made(hub.get_explainer, c, file, "explainers", i) for i, c in enumerate(config.explainers)]
    notes: list[str] = []
    with _at(file, "budget"):
        explainers = budgeted(explainers, config.budget, notes.append)
    metrics = [_made(hub.get_metric, c, file, "metrics", i) for i, c in enumerate(config.metrics)]
    controls = frozenset(spec.name for spec in hub.explainers if "control" in spec.tags)
    if config.controls:
        named = {explainer.name for explainer in explainers}
        explainers += [hub.get_explainer(name) for name in sorted(controls - named)]
    with _at(file, "images"):
        images = find_images(config.images)[: config.limit]
        _check_names(images)
    with _at(file, "labels"):
        labels = read_labels(config.labels, images)
    with _at(file, "masks"):
        masks = read_masks(config.masks, images)
    with _at(file, "boxes"):
        boxes = read_boxes(config.boxes, images)
    for number, metric in enumerate(metrics):
        if metric.needs_truth and not masks and not boxes:
            with _at(file, "metrics", number):
                raise ParameterError(
                    f"metric {metric.name!r} needs masks or boxes", hint="give --masks FOLDER or --boxes FILE"
                )
    if not explainers:
        with _at(file, "explainers"):
            raise ParameterError("there is no explainer to evaluate", hint="name one, or leave controls on")
    return Plan(
        config=config,
        images=images,
        explainers=_distinct(explainers),
        controls=controls,
        metrics=_distinct(metrics),
        labels=labels,
        masks=masks,
        boxes=boxes,
        notes=notes,
    )


def load_models(hub: Hub, plan: Plan, file: YamlFile | None = None) -> list[Model]:
    """Load a plan's models, and check against each the device, target, labels and baselines.

    Raises:
        XaihubError: One of them is wrong; names line and key if `file` is given.
    """
    config = plan.config
    with _at(file, "device"):
        pick_device(config.device)
    models: dict[str, Model] = {}
    networks: dict[str, str] = {}
    for number, name in enumerate(config.models):
        with _at(file, "models", number):
            runtime = Runtime(
                batch_size=config.batch_size,
                threads=config.threads,
                backend=config.backend,
                precision=config.precision,
            )
            model = hub.load_model(name, device=config.device, outputs=config.outputs, runtime=runtime)
            model = aimed(model, like_images=config.like, texts=config.text)
            if model.name in models:
                first = config.models[list(models).index(model.name)]
                message = f"{first!r} and {name!r} are both named {model.name!r}"
                raise ParameterError(message, hint="rename one of the cards, or evaluate each in its own run")
            models[model.name] = model
            if len(config.models) > 1:  # hashing all weights takes a while
                network = canonical([model.weights_hash, model.structure_hash, model.preprocessing.description])
                first = networks.setdefault(network, name)
                if first != name:
                    raise ParameterError(f"{first!r} and {name!r} are the same network", hint="drop one")
        with _at(file, "target"):
            Target.parse(config.target, model.classes, model.outputs)
        with _at(file, "labels"):
            for image, label in plan.labels.items():
                if model.classes and label >= len(model.classes):
                    message = f"class {label} of {image!r} is out of range"
                    raise InputError(message, hint=f"{model.name} has {len(model.classes)} classes")
        blank = torch.zeros(model.input_size)
        for key, make, choices in (
            ("explainers", hub.get_explainer, config.explainers),
            ("metrics", hub.get_metric, config.metrics),
        ):
            for place, choice in enumerate(choices):
                with _at(file, key, place):
                    _check_baselines(model, blank, _made(make, choice, file, key, place))
    return list(models.values())


def check_known(hub: Hub, config: Config, origins: Mapping[str, Origin]) -> None:
    """Check that the explainers and metrics of a run are still registered.

    Raises:
        UnknownName: One is not; names the plugin that made its results, with version and origin.
    """
    for kind, registry in (("explainers", hub.explainers), ("metrics", hub.metrics)):
        for choice in getattr(config, kind):
            name = choice if isinstance(choice, str) else choice.name
            origin = origins.get(f"{kind}/{name}")
            if origin is not None and registry.find(name) is None:
                raise UnknownName(
                    f"the results of {kind[:-1]} {name!r} in this run were made by plugin {origin.described}, which is"
                    " not installed or does not register it any more",
                    hint=origin.remedy,
                )


def _check_baselines(model: Model, blank: Tensor, item: Parametrised) -> None:
    kind: type = type(item)
    for name, parameter in parameters(kind).items():
        value = getattr(item, name)
        if parameter.is_a(BaselineName) and isinstance(value, str):
            with suppress(ExplainerRefused):  # a refusal is a result, recorded with each image
                make_removal(value, model, blank)


def _made(make: Any, choice: str | Choice, file: YamlFile | None, key: str, number: int) -> Any:
    choice = Choice(choice) if isinstance(choice, str) else choice
    with _at(file, key, number):
        return make(choice.name, **choice.params)


def _distinct(items: Iterable[Any]) -> list[Any]:
    return list({repr((item.name, item.parameters)): item for item in items}.values())


@contextmanager
def _at(file: YamlFile | None, *keys: str | int) -> Iterator[None]:
    """Report an error inside as one about the value at `keys` of the file."""
    try:
        yield
    except XaihubError as error:
        if file is None:
            raise
        raise file.complaint(error.message, *keys, hint=error.hint) from error


def _check_names(images: Sequence[str]) -> None:
    for image in images:
        try:
            image.encode()
        except UnicodeEncodeError as error:
            message = f"the file name {image!r} is not UTF-8, so it cannot be recorded"
            raise InputError(message, hint="rename the file") from error
