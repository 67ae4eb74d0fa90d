"""The hub: registries of everything that plugins register, and construction of explainers, metrics and models."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from xaihub.errors import ModelError, PluginError, UnknownName, XaihubError, did_you_mean
from xaihub.files import rooted
from xaihub.hub.devices import pick_device
from xaihub.hub.host import PluginHost
from xaihub.hub.origins import origin_of
from xaihub.hub.registry import Loaders, Registry
from xaihub.notices import fence
from xaihub.specs import (
    AdapterSpec,
    BackendSpec,
    BaselineSpec,
    EngineSpec,
    ExplainerSpec,
    GlobalExplainerSpec,
    HeadSpec,
    MetricSpec,
    ModelCard,
    ObjectiveSpec,
    ReproductionSpec,
    Spec,
    Weights,
)

if TYPE_CHECKING:
    from xaihub.explainers.explainer import Explainer
    from xaihub.metric import Metric
    from xaihub.models.adapter import ModelAdapter, ModelRequest
    from xaihub.models.headed import Head
    from xaihub.models.model import Model
    from xaihub.models.passes import Runtime
    from xaihub.objective import Objective
    from xaihub.ranking.explainer import GlobalExplainer


DEFAULT_MODEL = "efficientnet_lite0"
DEFAULT_EXPLAINER = "gradcam"
DEFAULT_GLOBAL_EXPLAINER = "scores"
DEFAULT_TIMEOUT = 600.0  # seconds for one explanation or score by a plugin of a third party
LOCAL = EngineSpec(
    name="local", target="xaihub.evaluation.local:LocalEngine", summary="Worker processes on this machine."
)
CARDS = (".yaml", ".yml")
S = TypeVar("S", bound=Spec)


def _registry(kind: str, record: type[S], *, hook: str = "") -> cached_property[Registry[S]]:
    """Return an attribute that is the registry of one kind, filled on first access."""
    noun = kind.removesuffix("s").replace("_", " ")
    return cached_property(lambda hub: Registry(hub.host, f"xaihub_register_{hook or kind}", record, noun))


class Hub:
    """Everything that the plugins of one host registered; each registry is filled on first access.

    The `get_...` methods raise `UnknownName`, `ParameterError` (a parameter is unknown, or its value has the wrong type
    or is out of range), `MissingExtra` (a library is not installed) and `PluginError` (the plugin's module is broken).
    They convert parameters given as strings to their types.

    Attributes:
        host: The plugin host.
        explainers: The registry of explainers.
        global_explainers: The registry of global explainers.
        metrics: The registry of metrics.
        objectives: The registry of training objectives.
        baselines: The registry of the removal operators that plugins add to the built-in ones.
        backends: The registry of libraries that run forward passes instead of torch's eager execution.
        heads: The registry of heads, which turn what a network returns into rows of scores.
        engines: The registry of engines, which compute evaluations in workers; "local" is always there.
        models: The registry of model cards.
        adapters: The registry of sources of models.
        reproductions: The registry of published experiments that can be re-run.
    """

    def __init__(self, host: PluginHost | None = None) -> None:
        """Use `host`, or create one and load every installed plugin."""
        self.host = PluginHost().load() if host is None else host

    explainers = _registry("explainers", ExplainerSpec)
    global_explainers = _registry("global_explainers", GlobalExplainerSpec)
    metrics = _registry("metrics", MetricSpec)
    objectives = _registry("objectives", ObjectiveSpec)
    baselines = _registry("baselines", BaselineSpec)
    backends = _registry("backends", BackendSpec)
    heads = _registry("heads", HeadSpec)
    engines = _registry("engines", EngineSpec)
    models = _registry("models", ModelCard)
    adapters = _registry("adapters", AdapterSpec, hook="model_adapters")
    reproductions = _registry("reproductions", ReproductionSpec)

    @property
    def registries(self) -> dict[str, Registry[Any]]:
        """Every registry by its attribute's name, in the order in which they are listed and searched."""
        return {kind: getattr(self, kind) for kind in REGISTRIES}

    @property
    def removals(self) -> Mapping[str, Callable[[], Callable[..., Any]]]:
        """The loaders of the removal operators by name, including those that are registered later."""
        return Loaders(self, "baselines")

    @property
    def automatic_backend(self) -> str:
        """The name of the first built-in backend whose library is installed; "eager" if there is none.

        It is "eager" with XAIHUB_TUNING=0 as well, where nothing depends on the machine.
        """
        if os.environ.get("XAIHUB_TUNING") == "0":
            return "eager"
        builtin = [spec for spec in self.backends if self.host.plugin(spec.plugin).builtin]
        return next((spec.name for spec in builtin if spec.library and find_spec(spec.library) is not None), "eager")

    def check_backend(self, name: str) -> None:
        """Check that a backend can be used.

        Raises:
            UnknownName: None has that name.
            MissingExtra: Its library is not installed.
        """
        from xaihub.models.backends import AUTO, EAGER, Backend

        if name not in (AUTO, EAGER):
            self.backends.get(name).load_class(Backend)

    def get_explainer(self, name: str = DEFAULT_EXPLAINER, /, **values: Any) -> Explainer:
        """Create the explainer called `name` with the given parameters."""
        from xaihub.explainers.explainer import Explainer

        spec = self.explainers.get(name)
        explainer: Explainer = self._create(spec, Explainer, values)
        explainer.check_parameters()
        explainer.variant = spec.variant
        return explainer

    def get_global_explainer(self, name: str = DEFAULT_GLOBAL_EXPLAINER, /, **values: Any) -> GlobalExplainer:
        """Create the global explainer called `name` with the given parameters."""
        from xaihub.ranking.explainer import GlobalExplainer

        explainer: GlobalExplainer = self._create(self.global_explainers.get(name), GlobalExplainer, values)
        explainer.check_parameters()
        return explainer

    def get_metric(self, name: str, /, **values: Any) -> Metric:
        """Create the metric called `name` with the given parameters."""
        from xaihub.metric import Metric

        metric: Metric = self._create(self.metrics.get(name), Metric, values)
        metric.check_parameters()
        return metric

    def get_head(self, name: str, /, **values: Any) -> Head:
        """Create the head called `name` with the given parameters; `Model.with_head` uses it."""
        from xaihub.models.headed import Head

        head: Head = self._create(self.heads.get(name), Head, values)
        head.title = head.title or name
        return head

    def get_engine(self, name: str, base: type, /, **values: Any) -> Any:
        """Create the engine called `name`, a subclass of `base`, with the given arguments."""
        spec = LOCAL if name == LOCAL.name else self.engines.get(name)
        return spec.load_class(base)(**values)

    def get_objective(self, name: str, /, **values: Any) -> Objective:
        """Create the training objective called `name` with the given parameters."""
        from xaihub.objective import Objective, fenced_objective

        return fenced_objective(self._create(self.objectives.get(name), Objective, values))

    def _create(self, spec: Spec, kind: type, values: Mapping[str, Any]) -> Any:
        """Create an instance of the class that a record names, which must derive from `kind`."""
        from xaihub.params import convert

        method = spec.load_class(kind)
        origin = origin_of(self.host.plugin(spec.plugin))
        outcome = fence.run(lambda: method(**convert(method, values, who=spec.name)), libraries=True)
        if isinstance(outcome.error, XaihubError):
            raise outcome.error
        if outcome.error is not None:
            what = f"plugin {origin.label} cannot make {method.noun} {spec.name!r}"
            raise PluginError(f"{what}: {fence.described(outcome.error)}") from outcome.error
        created = outcome.value
        created.name, created.origin = spec.name, origin
        return created

    def load_model(
        self,
        name: str = DEFAULT_MODEL,
        /,
        *,
        device: str = "auto",
        checkpoint: str | os.PathLike[str] | None = None,
        classes: str | os.PathLike[str] | Sequence[str] | None = None,
        layer: str | None = None,
        options: Mapping[str, Any] | None = None,
        outputs: str = "",
        runtime: Runtime | None = None,
        scratch: bool = False,
        size: int | None = None,
        input: Mapping[str, Any] | None = None,
    ) -> Model:
        """Load a model: a card of the zoo, the path of a card, a function in a file, or what an adapter knows.

        Args:
            name: For example "efficientnet_lite0", "resnet50.a1_in1k", "hf-hub:timm/...", "torchvision/resnet18" or
                "my_card.yaml". "model.py:build" runs that file and calls its function `build`, with the options as
                keyword arguments, which returns a `xaihub.Model`.
            device: "auto", "cpu", "cuda", "cuda:1", "mps".
            checkpoint: A weights file (.safetensors, .pt, .pth) that replaces the model's own weights.
            classes: Class names, or a text file with one per line, which replace the model's class names.
            layer: The layer for activation maps, instead of the traced one.
            options: Keyword arguments for the architecture's constructor.
            outputs: What the outputs mean, instead of what the card or the adapter declares: "multiclass",
                "multilabel", "binary", "regression", "regression:UNIT" or "embedding".
            runtime: Settings of the forward passes.
            scratch: Use random weights, drawn from torch's global generator.
            size: Input side length in pixels, instead of the model's own.
            input: Settings of the preprocessing as under `input` in a card, instead of the model's own.

        Raises:
            UnknownName: No model is called `name`; the hint lists similar names.
            ModelError: The model cannot be built, its weights do not fit, or the device is missing.
            ParameterError: `outputs` is not a kind of outputs, or `input` has a wrong setting.
        """
        from dataclasses import replace

        from xaihub.models.adapter import ModelRequest, read_classes
        from xaihub.models.cards import read_input
        from xaihub.models.passes import check_precision

        card, adapter = self._find(os.fspath(name))
        if layer is not None:
            card = replace(card, layers={**card.layers, "features": layer})
        if scratch:
            card = replace(card, weights=Weights(source="none"), objective="", objective_options={})
        given = {**({} if size is None else {"size": size}), **read_input(input or {})}
        card = replace(card, input={**card.input, **given})
        request = ModelRequest(
            name=card.name,
            card=card,
            checkpoint=None if checkpoint is None else os.fspath(checkpoint),
            classes=None if classes is None else read_classes(classes),
            options=options or {},
            outputs=outputs,
        )
        declared = request.declared
        where = pick_device(device)
        model = self._build_wrapped(request, adapter, where) if card.objective else _built(adapter, request, where)
        if declared is not None and declared != model.outputs:
            model = model.declared(declared)
        model.baselines, model.backends = self.removals, Loaders(self, "backends")
        model.automatic_backend = self.automatic_backend
        model.module.requires_grad_(False)  # explaining needs no weight gradients; training enables them
        if layer is not None:
            model.use_layer(layer)
        if runtime is not None:
            check_precision(runtime.precision, model.device)
            self.check_backend(runtime.backend)
            model.runtime = runtime
        if not scratch and not options:
            card_file = name if name.lower().endswith(CARDS) else None
            files = {"name": card_file, "checkpoint": checkpoint, "classes": classes}
            code = f"{model.code['file']}:{model.code['function']}" if model.code else name
            model.loaded = {
                "name": code, "device": str(model.device), "layer": layer, "outputs": outputs, "size": size,
                "input": dict(input or {}),
                **{key: _portable(value) for key, value in files.items() if value is not None},
                "plugin_files": [info.module for info in self.host.plugins if info.module.endswith(".py")],
            }  # fmt: skip
        return model

    def rooted(self, name: str) -> str:
        """Return a model's name such that it means the same from any folder; an unknown name stays as it is."""
        if self.models.find(name) is None:
            if name.lower().endswith(CARDS):
                return rooted(name)
            with suppress(Exception):  # whatever does not work is reported when the model is loaded
                return self._find(name)[1].rooted(name)
        return name

    def _build_wrapped(self, request: ModelRequest, adapter: ModelAdapter, device: Any) -> Model:
        """Build the plain model, let the card's training objective modify the architecture, and load the weights."""
        from dataclasses import replace

        from xaihub.models.weights import fill, read_weights, weights_file

        card = request.card
        objective = self.get_objective(card.objective, **card.objective_options)
        plain = replace(card, weights=Weights(source="none"), objective="")
        model = _built(adapter, replace(request, card=plain, checkpoint=None), device)
        model = model.around(objective.wrap(model), card=card)
        file = request.checkpoint or weights_file(card)
        fill(model.module, read_weights(file), what=f"the weights file {os.fspath(file)!r}")
        return model

    def _find(self, name: str) -> tuple[ModelCard, ModelAdapter]:
        card = self.models.find(name)
        if card is None and name.lower().endswith(CARDS):
            from xaihub.models.cards import read_card

            card = read_card(name)
        if card is not None:
            return card, self._adapter(card.adapter)
        if ".py" in name.lower():
            from xaihub.models.own import FunctionAdapter

            if (mine := FunctionAdapter()).knows(name):
                return ModelCard(name=name, architecture=name), mine
        for spec in [spec for spec in self.adapters if spec.claims(name)] or self.adapters:
            adapter = self._try_adapter(spec, name)
            if adapter is not None:
                return ModelCard(name=name, adapter=spec.name, architecture=name), adapter
        raise UnknownName(f"no model is named {name!r}", hint=self._near_models(name))

    def _try_adapter(self, spec: AdapterSpec, name: str) -> ModelAdapter | None:
        """Return the adapter if it knows `name`; a broken one is skipped unless the name has its prefix."""
        try:
            adapter = self._adapter(spec.name)
            return adapter if adapter.knows(name) else None
        except (Exception, SystemExit) as error:  # the plugin fence: the models of other adapters must stay available
            if isinstance(error, XaihubError) and spec.claims(name):
                raise
            self._blame(spec, error)
            return None

    def _blame(self, spec: AdapterSpec, error: BaseException) -> None:
        what = str(error) if isinstance(error, XaihubError) else fence.described(error)
        self.host.problem(self.host.plugin(spec.plugin), f"adapter {spec.name!r} does not work: {what}")

    def _adapter(self, name: str) -> ModelAdapter:
        from xaihub.models.adapter import ModelAdapter

        adapter: ModelAdapter = self.adapters.get(name).load_class(ModelAdapter)()
        return adapter

    def adapter_names(self, spec: AdapterSpec) -> list[str]:
        """Return the models that an adapter lists; none if it does not work, which is reported."""
        try:
            return [str(name) for name in self._adapter(spec.name).names()]
        except (Exception, SystemExit) as error:  # the plugin fence, as above
            self._blame(spec, error)
            return []

    def _near_models(self, name: str) -> str:
        known = [*self.models.names()]
        for spec in self.adapters:
            known += self.adapter_names(spec)
        return did_you_mean(name, known) or "xaihub list models --timm '*' lists every architecture"


REGISTRIES = tuple(kind for kind, value in vars(Hub).items() if isinstance(value, cached_property))


def _built(adapter: ModelAdapter, request: ModelRequest, device: Any) -> Model:
    """Let an adapter build a model; what an architecture raises about its options becomes one line."""
    try:
        return adapter.build(request, device)
    except XaihubError:
        raise
    except (Exception, SystemExit) as error:  # architectures are foreign code
        raise ModelError(
            f"model {request.name!r} cannot be built: {fence.described(error)}",
            hint="check the options of its card or of the command",
        ) from error


def _portable(given: str | os.PathLike[str] | Sequence[str]) -> str | list[str]:
    """Return an absolute path, or a list of names as it is."""
    return str(Path(given).absolute()) if isinstance(given, (str, os.PathLike)) else list(given)
