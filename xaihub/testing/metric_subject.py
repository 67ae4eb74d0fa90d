"""A metric under test: created anew for each check, on planted scenes and on a toy network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from xaihub.errors import XaihubError
from xaihub.explainers.explainer import Explainer
from xaihub.explainers.target import ResolvedTarget, Target
from xaihub.metric import Case, Metric, Scene
from xaihub.models.model import Model
from xaihub.models.snapshot import Snapshot
from xaihub.specs import MetricSpec
from xaihub.testing.budgets import small_parameters
from xaihub.testing.catalogue import Refused
from xaihub.testing.planted import Planted, planted_case, planted_scenes
from xaihub.testing.process import Observation, observed
from xaihub.testing.toys import SIDE, images, tiny_cnn

KINDS: tuple[Planted, ...] = ("oracle", "shuffled", "inverted")
POOL = 8


class _Gradient(Explainer):
    """Gradient times input, for metrics that re-run the explainer on a toy network."""

    completeness = True

    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Any:
        """Return (B, 3, H, W) values."""
        inputs.requires_grad_()
        gradient = torch.autograd.grad(target.score(model(inputs)).sum(), inputs)[0]
        return (gradient * inputs).detach()


class MetricSubject:
    """A metric's class, its record, and parameters with small budgets."""

    def __init__(
        self,
        method: type[Metric],
        *,
        spec: MetricSpec | None = None,
        parameters: Mapping[str, Any] | None = None,
        explainers: Callable[[str], Iterable[Explainer]] = lambda _: (),
    ) -> None:
        """Check `method` with `parameters`, and with small budgets for parameters with the usual names.

        `explainers`, called with a refusal, returns explainers for a metric that refuses the kit's own maps.
        """
        self.method = method
        self.spec = spec
        self.given = dict(parameters or {})
        self.seen = Observation()
        self._quick: Mapping[str, Any] | None = None
        self._explainers = explainers
        self._found: Explainer | None = None
        self.name = spec.name if spec is not None else method.__name__

    @property
    def tags(self) -> frozenset[str]:
        """The tags of its record."""
        return frozenset(self.spec.tags if self.spec is not None else ())

    def make(self, **changed: Any) -> Metric:
        """Return a new instance with the quick parameters, or with some of them changed."""
        if self._quick is None:
            self._quick = {**small_parameters(self.method, SIDE), **self.given}
        return self.make_default(**{**self._quick, **changed})

    def make_default(self, **changed: Any) -> Metric:
        """Return a new instance with its default budget."""
        metric = self.method(**{**self.given, **changed})
        metric.name = self.name
        return metric

    def measure(self, case: Case, metric: Metric | None = None) -> float:
        """Return the value of a case.

        Raises:
            Refused: The metric refused.
        """
        value = self.try_on(case, metric)
        if isinstance(value, str):
            raise Refused(value)
        return value

    def try_on(self, case: Case, metric: Metric | None = None, *, changes: list[str] | None = None) -> float | str:
        """Return the value of a case, or the metric's reason for refusing.

        What `score` changes in the case that it was given is added to `changes`.
        """
        metric = metric or self.make()
        original: Callable[[Case], Any] = metric.score

        def score(case: Case) -> Any:  # observed here, because `measure` restores what a metric changes
            with nullcontext() if changes is None else _watched(case, changes), observed(self.seen):
                return original(case)

        metric.score = score  # type: ignore[method-assign]
        try:
            return metric.measure(case)[0].value
        except XaihubError as error:  # a parameter may not fit the kit's small images
            return str(error)
        finally:
            del metric.score

    def exercise(self) -> None:
        """Create it and measure one case, observed as every measurement is."""
        case = self.any_case()
        with observed(self.seen):
            metric = self.make()
        self.try_on(case, metric)

    @cached_property
    def homes(self) -> list[str]:
        """The scenes that it scores: "planted", "toy" or both; or "explained", with maps of a registered explainer.

        Raises:
            Refused: It refuses them all.
        """
        for parameters in (None, self.given):  # a quick budget may be too small for a value
            self._quick = parameters
            outcomes = {name: self.try_on(self.cases(name)[0]) for name in ("planted", "toy")}
            found = [name for name, outcome in outcomes.items() if isinstance(outcome, float)]
            if found:
                return found
        for explainer in self._explainers(str(outcomes["planted"])):
            try:
                case = toy_case(explainer=explainer)
            except XaihubError:
                continue  # the explainer is not valid for the toy
            if isinstance(self.try_on(case), float):
                self._found = explainer
                return ["explained"]
        raise Refused(f"it refuses every scene: {outcomes['planted']}")

    def cases(self, name: str | None = None, *, count: int = 1) -> list[Case]:
        """Return new cases of the scenes called `name`, by default of the first that it scores."""
        name = name or self.homes[0]
        with torch.random.fork_rng(devices=[]):
            if name == "planted":
                return [planted_case(scene) for scene in planted_scenes(count)]
            return [toy_case(number, explainer=self._found) for number in range(count)]

    def any_case(self) -> Case:
        """Return a new case, also for a metric whose results are discarded, for instance because of what it changes."""
        try:
            return self.cases()[0]
        except Refused:
            return self.cases("planted")[0]

    @cached_property
    def values(self) -> list[float]:
        """Its values for many maps: true, shuffled and inverted maps, gradients, noise.

        Raises:
            Refused: It refuses all of them.
        """
        if self.homes == ["explained"]:
            cases = self.cases(count=3)
        else:
            cases = [planted_case(scene, kind) for scene in planted_scenes(2) for kind in KINDS]
            cases += [toy_case(number, of_noise=of_noise) for number in range(2) for of_noise in (False, True)]
        return [value for case in cases if isinstance(value := self.try_on(case), float)]


def toy_case(number: int = 0, *, of_noise: bool = False, explainer: Explainer | None = None) -> Case:
    """Return a case on the tiny convolutional network: an explainer's map, or one of noise."""
    model = tiny_cnn()
    image = images(number + 1)[number]
    logits = model.predict(image[None])[0]
    index = int(logits.argmax())
    others = images(POOL, seed=5)
    truth = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    truth[8:28, 8 + number : 28 + number] = True
    scene = Scene(
        model=model,
        image=image,
        logits=logits,
        target=ResolvedTarget(index=torch.tensor([index])),
        truth=truth,
        pool=list(zip(others, model.predict(others).argmax(1).tolist(), strict=True)),
    )
    explainer = explainer or _Gradient()
    (explanation,) = explainer.explain(model, image[None], Target(index=index), logits=logits[None])
    explanation = replace(explanation, metadata={**explanation.metadata, "completeness_gap": 0.1})
    if of_noise:
        explanation.values.copy_(torch.randn(explanation.values.shape, generator=torch.Generator().manual_seed(number)))
    return Case(scene=scene, explanation=explanation, explainer=explainer)


@contextmanager
def _watched(case: Case, changes: list[str]) -> Iterator[None]:
    """Add what changes within to a list."""
    scene = vars(case.scene)  # whether or not the metric declared that it reads the mask
    watched = {"image": scene["image"], "mask": scene["truth"], "scores": scene["logits"]}
    watched["map"] = case.explanation.values
    before = {name: tensor.clone() for name, tensor in watched.items()}
    state = Snapshot(case.model.module).with_contents()
    try:
        yield
    finally:
        changes += [f"it changed the {name}" for name, tensor in watched.items() if not tensor.equal(before[name])]
        changes += [f"it {change}" for change in state.changes()]
