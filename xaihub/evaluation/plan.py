"""The plan of a run: its configuration with every name, parameter, path and model checked before any work."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from xaihub.errors import ExplainerRefused, InputError, ParameterError, UnknownName, XaihubError
from xaihub.evaluation.annotations import read_boxes, read_labels, read_masks
from xaihub.evaluation.config import Choice, Config
from xaihub.evaluation.listing import listed
from xaihub.evaluation.sources import Sources
from xaihub.evaluation.tasks import Box
from xaihub.explainers.budget import within_each
from xaihub.explainers.explainer import Explainer
from xaihub.explainers.target import Target
from xaihub.hub import Hub, pick_device
from xaihub.masking import BaselineName, make_removal
from xaihub.metric import Metric
from xaihub.models.cards import read_input
from xaihub.models.headed import Head
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
        images: The images, with their annotations.
        explainers: The explainers, controls last.
        controls: The names of those that are controls.
        metrics: The metrics.
        notes: Which explainers do not spend the budget.
    """

    config: Config
    images: Sources
    explainers: Sequence[Explainer]
    controls: frozenset[str]
    metrics: Sequence[Metric]
    notes: Sequence[str] = ()

    @property
    def labels(self) -> Mapping[str, int]:
        """The class of each labelled image, by its name."""
        return self.images.values("label")

    @property
    def masks(self) -> Mapping[str, str]:
        """Where the mask of each image is read that has one, by its name; see `xaihub.evaluation.places`."""
        return self.images.values("mask")

    @property
    def boxes(self) -> Mapping[str, Sequence[Box]]:
        """The boxes of each image that has any, by its name."""
        return self.images.values("boxes")

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


@dataclass(frozen=True)
class Shard:
    """The part of the images whose checksum, divided by `count`, leaves `number`."""

    number: int
    count: int

    @classmethod
    def parse(cls, text: str | None) -> Shard | None:
        """Return part I of N from "I/N", counted from 1.

        Raises:
            ParameterError: It is not one.
        """
        if text is None:
            return None
        number, _, count = text.partition("/")
        if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
            raise ParameterError(f"{text!r} is not a shard", hint="part 2 of 4 is 2/4")
        return cls(int(number) - 1, int(count))

    def has(self, sha256: str) -> bool:
        """Whether an image belongs to it; one that cannot be read belongs to the first."""
        return int(sha256[:15] or "0", 16) % self.count == self.number


def make_plan(hub: Hub, config: Config, file: YamlFile | None = None) -> Plan:
    """Check everything that can be checked without a model.

    Raises:
        XaihubError: A name, parameter or path is wrong; names line and key if `file` is given.
    """
    notes: list[str] = []
    explainers, metrics = methods(hub, config, file, notes.append)
    controls = _controls(hub)
    with _at(file, "images"):
        images = listed(config.images, limit=config.limit)
    with _at(file, "input"):
        read_input(config.input)
    with _at(file, "head"):
        head_of(hub, config)
    with _at(file, "shard"):
        Shard.parse(config.shard)
    with _at(file, "labels"):
        images.annotate("label", read_labels(config.labels, images))
    with _at(file, "masks"):
        images.annotate("mask", read_masks(config.masks, images))
    with _at(file, "boxes"):
        images.annotate("boxes", read_boxes(config.boxes, images))
    truth = bool(images.values("mask") or images.values("boxes"))
    for number, metric in enumerate(metrics):
        if metric.needs_truth and not truth:
            with _at(file, "metrics", number):
                raise ParameterError(
                    f"metric {metric.name!r} needs masks or boxes",
                    hint="give --masks FOLDER or --boxes FILE, or images that have them",
                )
    if not explainers:
        with _at(file, "explainers"):
            raise ParameterError("there is no explainer to evaluate", hint="name one, or leave controls on")
    return Plan(config=config, images=images, explainers=explainers, controls=controls, metrics=metrics, notes=notes)


def methods(
    hub: Hub, config: Config, file: YamlFile | None = None, note: Callable[[str], None] = lambda _text: None
) -> tuple[list[Explainer], list[Metric]]:
    """Return the explainers and metrics of a plan, each once, controls last; `note` is told who spends no budget.

    Raises:
        XaihubError: A name or a parameter is wrong; names line and key if `file` is given.
    """
    explainers = list[Explainer]()
    for number, choice in enumerate(config.explainers):
        made = _made(hub.get_explainer, choice, file, "explainers", number)
        own = None if isinstance(choice, str) else choice.budget
        with _at(file, *(("budget",) if own is None else ("explainers", number))):
            explainers += within_each(made, config.budgets if own is None else [own], note)
    for number, choice in enumerate(config.metrics):
        if isinstance(choice, Choice) and choice.budget is not None:
            with _at(file, "metrics", number):
                raise ParameterError(f"metric {choice.name!r} cannot have a budget", hint="only explainers can")
    metrics = [_made(hub.get_metric, c, file, "metrics", i) for i, c in enumerate(config.metrics)]
    if config.controls:
        named = {explainer.name for explainer in explainers}
        explainers += [hub.get_explainer(name) for name in sorted(_controls(hub) - named)]
    return _distinct(explainers), _distinct(metrics)


def _controls(hub: Hub) -> frozenset[str]:
    return frozenset(spec.name for spec in hub.explainers if "control" in spec.tags)


def load_one(hub: Hub, config: Config, name: str) -> Model:
    """Load a model as a plan asks for it.

    Raises:
        XaihubError: It cannot be loaded.
    """
    runtime = Runtime(
        batch_size=config.batch_size, threads=config.threads, backend=config.backend, precision=config.precision
    )
    model = hub.load_model(name, device=config.device, outputs=config.outputs, input=config.input, runtime=runtime)
    return aimed(model, like_images=config.like, texts=config.text, head=head_of(hub, config))


def head_of(hub: Hub, config: Config) -> Head | None:
    """Return the head of a plan, if it has one.

    Raises:
        XaihubError: Its name or a parameter is wrong.
    """
    chosen = config.head if isinstance(config.head, Choice) else Choice(config.head)
    return hub.get_head(chosen.name, **chosen.params) if chosen.name else None


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
            model = load_one(hub, config, name)
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
    return list({repr((item.name, getattr(item, "settings", item.parameters))): item for item in items}.values())


@contextmanager
def _at(file: YamlFile | None, *keys: str | int) -> Iterator[None]:
    """Report an error inside as one about the value at `keys` of the file."""
    try:
        yield
    except XaihubError as error:
        if file is None:
            raise
        raise file.complaint(error.message, *keys, hint=error.hint) from error
