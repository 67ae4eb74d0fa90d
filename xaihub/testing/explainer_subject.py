"""An explainer under test: created anew for each check and observed while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from xaihub.errors import ParameterError, XaihubError
from xaihub.explainers.explainer import Attribution, Explainer
from xaihub.explainers.explanation import Explanation
from xaihub.explainers.target import ResolvedTarget, Target
from xaihub.models.model import Model
from xaihub.models.snapshot import Snapshot
from xaihub.params import convert
from xaihub.specs import ExplainerSpec
from xaihub.testing.budgets import MOST, reduced, small_parameters
from xaihub.testing.catalogue import Refused, applies, is_ctrl_c, raised
from xaihub.testing.cost import SCALES
from xaihub.testing.process import Observation, observed
from xaihub.testing.toys import SIDE, TOYS, images, tiny_plain

# As in `Model.baselines`: each is imported when it is called.
Baselines = Mapping[str, Callable[[], Callable[..., Any]]]
# Returns what is entered for each call of `attribute`, to observe it.
Around = Callable[[], AbstractContextManager[None]]
# Not where other checks take place: it has a single class.
ASIDE = "tiny_one_output"


@dataclass
class Trial:
    """The outcome of one call of an explainer.

    Attributes:
        explanations: The result; empty if there is none.
        returned: The values that `attribute` returned, each with the shape of its inputs.
        refusal: The reason given by `attribute` for refusing, or None.
        rejected: The reason why the base class rejected the values, or an empty string.
        error: Any other exception.
        change: What `attribute` changed in the network, or an empty string.
    """

    explanations: list[Explanation] = field(default_factory=list)
    returned: list[tuple[Any, tuple[int, ...]]] = field(default_factory=list)
    refusal: str | None = None
    rejected: str = ""
    error: BaseException | None = None
    change: str = ""

    @property
    def worked(self) -> bool:
        """Whether there is a map."""
        return bool(self.explanations)

    @property
    def values(self) -> Tensor:
        """(B, C, H, W) values."""
        return torch.stack([item.values for item in self.explanations])


class _Fuse:
    """Counts the rows that pass the network, and stops it when there are too many."""

    def __init__(self, most: int) -> None:
        self.rows, self._most = 0, most

    def __call__(self, _module: object, inputs: tuple[Tensor, ...]) -> None:
        self.rows += len(inputs[0])
        if self.rows > self._most:
            raise RuntimeError("stopped by the conformance kit, which looks for smaller parameters")


def enlarged(subject: ExplainerSubject, times: int) -> dict[str, Any]:
    """Return the quick budgets multiplied by `times`, without those that would exceed their limits."""
    known = subject.make().parameters
    larger: dict[str, Any] = {}
    for name in (*SCALES, *subject.scales):
        value = known.get(name)
        if isinstance(value, int) and not isinstance(value, bool):
            try:
                larger |= convert(subject.method, {name: value * times})
            except ParameterError:
                continue
    return larger


def same(first: Tensor, second: Tensor, *, tolerance: float = 0.0) -> bool:
    """Whether two maps are equal, up to a fraction of their largest magnitude."""
    if first.shape != second.shape:
        return False
    largest = float(torch.maximum(first.abs().max(), second.abs().max()))
    return bool((first - second).abs().max() <= tolerance * largest)


class ExplainerSubject:
    """An explainer's class, its record, and parameters with small budgets."""

    def __init__(
        self,
        method: type[Explainer],
        *,
        spec: ExplainerSpec | None = None,
        parameters: Mapping[str, Any] | None = None,
        baselines: Baselines | None = None,
    ) -> None:
        """Check `method` with `parameters`, and with small budgets for parameters with the usual names.

        `baselines` are the removal operators of plugins.
        """
        self.method = method
        self.spec = spec
        self._baselines = baselines or {}
        self.given = dict(parameters or {})
        self.name = spec.name if spec is not None else method.__name__
        self.seen = Observation()
        self._observed = partial(observed, self.seen)
        self.scales: Mapping[str, Any] = {}  # parameters that determine its cost, in addition to those of usual names
        # In this order; the last two are used only if the method refuses the others.
        self.networks: dict[str, Callable[..., Model]] = {**TOYS, "tiny_plain": tiny_plain}
        if hasattr(method, "example_model"):
            self.networks["example_model"] = method.example_model

    @cached_property
    def parameters(self) -> dict[str, Any]:
        """The parameters of a quick run."""
        quick = {**small_parameters(self.method, SIDE), **self.given}
        return {**quick, **self._reduced(quick)}

    def _reduced(self, quick: dict[str, Any]) -> dict[str, Any]:
        """Return smaller values for parameters that make it slow under names of their own."""

        def passes(values: Mapping[str, Any]) -> int:
            for name in TOYS:
                model, count = self._toy(name), _Fuse(MOST)
                model.module.register_forward_pre_hook(count)
                inputs = _images_for(model.input_size, 1)
                trial = self.try_on(model, inputs, explainer=self.method(**values), around=self._observed)
                if trial.refusal is None:
                    break
            return count.rows

        self.scales = reduced(self.method, quick, passes)
        return self.scales

    def make(self, **changed: Any) -> Explainer:
        """Return a new instance with the quick parameters, or with some of them changed."""
        explainer = self.method(**{**self.parameters, **changed})
        explainer.name = self.name
        return explainer

    def try_on(
        self,
        model: Model,
        inputs: Tensor,
        target: Target | int | None = None,
        *,
        explainer: Explainer | None = None,
        seed: int = 0,
        around: Around = nullcontext,
    ) -> Trial:
        """Explain, and record the outcome; `around()` is entered for each call of `attribute`."""
        trial = Trial()
        explainer = explainer or self.make()
        with _watched(explainer, trial, around):
            try:
                trial.explanations = explainer.explain(model, inputs, target, seed=seed)
            except XaihubError as error:
                if trial.refusal is None:
                    trial.rejected = error.message
            except BaseException as error:  # the plugin fence: it may fail in any way, and a check reports it
                if is_ctrl_c(error):
                    raise
                trial.error = error
        return trial

    def exercise(self) -> None:
        """Create it and explain two images, observed as its first calls were."""
        self.require_a_call()
        with observed(self.seen):
            explainer = self.make()
        self.try_on(self.toy(), self.images(2), explainer=explainer, around=self._observed)

    @cached_property
    def trials(self) -> dict[str, Trial]:
        """The outcome on each network, by name; the last networks are tried only if it refuses the others."""
        trials: dict[str, Trial] = {}
        for name in self.networks:
            if name in TOYS or all(trials[other].refusal is not None for other in trials if other != ASIDE):
                model = self._toy(name)
                # What a plugin changes for good, it changes in the first call.
                trials[name] = self.try_on(model, _images_for(model.input_size, 1), around=self._observed)
        return trials

    @cached_property
    def home(self) -> str:
        """The first network that it explains, or the first one that it does not refuse."""
        trials = self.trials
        homes = [name for name in trials if name != ASIDE]
        return min(homes, key=lambda name: (not trials[name].worked, trials[name].refusal is not None))

    @property
    def model(self) -> Model:
        """A new copy of the network that it explains, for checks that need a map.

        Raises:
            Refused: It refuses every network.
            NotApplicable: It returns no map, which other checks report.
        """
        self.require_a_call()
        trial = self.trials[self.home]
        applies(trial.worked, f"it returns no map: {raised(trial.error) if trial.error else trial.rejected}")
        return self.toy()

    def toy(self, *, seed: int = 0) -> Model:
        """Return a new copy of the network that suits it best."""
        return self._toy(self.home, seed=seed)

    def _toy(self, name: str, *, seed: int = 0) -> Model:
        with torch.random.fork_rng(devices=[]):  # an `example_model` may draw its weights
            model = self.networks[name](seed=seed)
        model.baselines = self._baselines
        return model

    def images(self, count: int, *, seed: int = 0) -> Tensor:
        """Return (count, C, H, W) images for the network that suits it best."""
        return _images_for(self._size, count, seed=seed)

    @cached_property
    def _size(self) -> tuple[int, int, int]:
        return self.toy().input_size

    def require_a_call(self) -> None:
        """Raise `Refused` if it refuses every network."""
        refusal = self.trials[self.home].refusal
        if refusal is not None:
            raise Refused(f"it refuses every network of the kit: {refusal}")

    def values(self, model: Model, inputs: Tensor, target: Target | int | None = None, **how: Any) -> Tensor:
        """Return the (B, C, H, W) values of an explanation that must succeed.

        Raises:
            Refused: It refuses these images or this network.
            XaihubError: The base class rejected its values.
        """
        trial = self.try_on(model, inputs, target, **how)
        if trial.refusal is not None:
            raise Refused(trial.refusal)
        if trial.error is not None:
            raise trial.error
        if not trial.worked:
            raise XaihubError(trial.rejected)
        return trial.values


@contextmanager
def _watched(explainer: Explainer, trial: Trial, around: Around) -> Iterator[None]:
    """Record what `attribute` receives, returns and changes, before the base class restores the network."""
    original: Callable[..., Any] = explainer.attribute

    def attribute(model: Model, inputs: Tensor, target: ResolvedTarget) -> Any:
        shape = tuple(inputs.shape)
        before = Snapshot(model.module).with_contents()
        try:
            with around():
                result = original(model, inputs, target)
        except XaihubError as error:
            trial.refusal = error.message
            raise
        finally:
            trial.change = trial.change or next(iter(before.changes()), "")
        parts = [(part, (1, *shape[1:])) for part in result] if isinstance(result, list) else [(result, shape)]
        trial.returned += [(part.values if isinstance(part, Attribution) else part, size) for part, size in parts]
        return result

    explainer.attribute = attribute  # type: ignore[method-assign]
    try:
        yield
    finally:
        del explainer.attribute


def _images_for(size: tuple[int, int, int], count: int, *, seed: int = 0) -> Tensor:
    """Return (count, C, H, W) images of a size."""
    made = images(count, seed=seed)
    if size == tuple(made.shape[1:]):
        return made
    channels = made[:, [number % 3 for number in range(size[0])]]
    return interpolate(channels, size=size[1:], mode="bilinear", align_corners=False)
