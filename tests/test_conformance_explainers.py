"""Explainers with one fault each: the corresponding check fails, and its advice says what to change."""

from __future__ import annotations

import os
import re
import sys
import threading
from collections.abc import Iterator
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from xaihub import (
    Attribution,
    Explainer,
    ExplainerRefused,
    ExplainerSpec,
    Layout,
    Meta,
    Model,
    Passes,
    Preprocessing,
    ResolvedTarget,
)
from xaihub.masking import baseline_image
from xaihub.testing import randomise
from xaihub.testing.catalogue import CheckResult, run
from xaihub.testing.explainer_subject import ExplainerSubject
from xaihub.testing.kit import checks

ELSEWHERE = "every_parameter_has_an_effect"  # tested in test_parameter_effects.py
_LAST = threading.Event()  # never set: threads wait for it until their timeout
Count = Annotated[int, Meta(ge=1, description="Points.")]


class Good(Explainer):
    """The gradient times the input."""

    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Any:
        """Return (B, 3, H, W) values."""
        return self.gradient(model, inputs, target) * inputs.detach()

    def gradient(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Tensor:
        points = inputs.detach().clone().requires_grad_()
        return torch.autograd.grad(target.score(model(points)).sum(), points)[0]


class Works(Good):
    def __init__(self, *, samples: Count = 4) -> None:
        self.samples = samples * 1


class TakesPositions(Good):
    def __init__(self, samples: Count = 4) -> None:
        self.samples = samples


class SaysNothing(Good):
    def __init__(self, *, samples: int = 4) -> None:
        self.samples = samples


class BreaksItsLimits(Good):
    def __init__(self, *, samples: Count = 0) -> None:
        self.samples = samples

    def check_parameters(self) -> str:
        return "it"


class KeepsMore(Good):
    def __init__(self, *, samples: Count = 4) -> None:
        self.samples = samples
        self.cache: list[Tensor] = []


class KeepsMoreInPublic(Good):
    samples: Count = 4
    cache: list[Tensor] = field(default_factory=list, init=False)


class KeepsHiddenState(Good):
    def __init__(self, *, samples: Count = 4) -> None:
        self.samples = samples
        self._cache: list[Tensor] = []


class DeclaresItsParameters(Good):
    """Parameters as annotated attributes, with private state."""

    samples: Count = 4
    _last: Tensor | None = field(default=None, init=False)


class InheritsParameters(DeclaresItsParameters):
    points: Count = 2


class WritesItsConstructor(Good):
    def __init__(self, *, samples: Count = 4) -> None:
        self.samples = samples


class NeedsAParameter(Good):
    samples: Count


class DescribesNothing(Good):
    samples: int = 4


class HalfSize(Good):
    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Any:
        return super().attribute(model, inputs, target)[:, :, ::2, ::2]


class NoTensor(Good):
    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Any:
        return super().attribute(model, inputs, target).numpy()


class DividesByNothing(Good):
    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Any:
        return super().attribute(model, inputs, target) / inputs.detach().std((1, 2, 3), keepdim=True)


class SwitchesGradientsOn(Good):
    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Any:
        values = super().attribute(model, inputs, target)
        model.module.requires_grad_(True)
        return values


class CountsBatches(Good):
    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Any:
        values = super().attribute(model, inputs, target)
        for name, buffer in model.module.named_buffers():
            buffer += name.endswith("num_batches_tracked")
        return values


class LeavesAHook(Good):
    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Any:
        values = super().attribute(model, inputs, target)
        model.module.register_forward_hook(lambda *_: None)
        return values


class TrainsInstead(Good):
    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Any:
        values = super().attribute(model, inputs, target)
        model.module.train()
        return values


class CleansUpInTheLastLine(Good):
    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Any:
        handle = model.module.register_forward_hook(lambda *_: None)
        values = super().attribute(model, inputs, target)
        handle.remove()
        return values


class ClampsInPlace(Good):
    def explain(self, model: Model, inputs: Tensor, target: Any = None, *, seed: int = 0) -> Any:
        return super().explain(model, inputs.clamp_(-1.5, 1.5), target, seed=seed)


class OwnRandomness(Good):
    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Any:
        noise = torch.from_numpy(np.random.default_rng().standard_normal(inputs.shape)).float()
        values = super().attribute(model, inputs, target)
        return values + 1e-6 * values.abs().max() * noise


class RemembersTheFirst(Good):
    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Any:
        values = super().attribute(model, inputs, target)
        scale = vars(self).setdefault("scale", 1 + 1e-5 * float(inputs[0, 0, 0, 0]))
        return values * scale


class LooksAtTheBatch(Good):
    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Any:
        values = super().attribute(model, inputs, target)
        return values / values.abs().max()


class HiddenRandomness(Good):
    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Any:
        return super().attribute(model, inputs + 0.3 * torch.randn_like(inputs), target)


class NoisyFirst(Good):
    plain_first = True

    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Any:
        model(inputs + 0.01)
        return super().attribute(model, inputs, target)


class TakesTheMaximum(Good):
    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Any:
        inputs.requires_grad_()
        return torch.autograd.grad(model(inputs).amax(1).sum(), inputs)[0]


class ClaimsNoClass(Good):
    class_agnostic = True


class NeverAsks(Good):
    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Any:
        return inputs * (1 + target.index[:, None, None, None]) ** 2


class OnlyScalesTheImage(Good):
    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Any:
        return inputs.abs() * target.score(model(inputs))[:, None, None, None]


class _ByLayout(Good):
    missing: ClassVar[Layout]

    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Any:
        axes = {layout: 0 for layout in Layout if layout is not self.missing}
        assert axes[model.layer().layout] == 0
        return super().attribute(model, inputs, target)


class NoConvolutions(_ByLayout):
    missing = Layout.NCHW


class NoTokens(_ByLayout):
    missing = Layout.NTC


class NoChannelsLast(_ByLayout):
    missing = Layout.NHWC


class RefusesWithoutAWord(Good):
    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Any:
        if model.layer().layout is Layout.NTC:
            raise ExplainerRefused("no")
        return super().attribute(model, inputs, target)


class RefusesAll(Good):
    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Any:
        if model.input_size != (1, 48, 32):
            raise ExplainerRefused(f"{model.name!r} has images of another size")
        return super().attribute(model, inputs, target)


class BringsItsOwn(RefusesAll):
    @staticmethod
    def example_model(*, seed: int = 0) -> Model:
        module = nn.Sequential(nn.Conv2d(1, 8, 3, stride=4, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 96, 4))
        randomise(module, seed=seed)
        preprocessing = Preprocessing(spatial=[], size=(1, 48, 32), mean=(0.5,), std=(0.5,))
        return Model(module.requires_grad_(False), name="own", preprocessing=preprocessing)


class AllAtOnce(Good):
    def __init__(self, *, samples: Count = 4) -> None:
        self.samples = samples

    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Any:
        maps = []
        for row, image in enumerate(inputs):
            many = image * torch.linspace(0.5, 1, self.samples).view(-1, 1, 1, 1)
            maps.append(self.gradient(model, many, target[row : row + 1]).mean(0) * image)
        return torch.stack(maps)


class KeepsEverything(Good):
    def __init__(self, *, samples: Count = 4) -> None:
        self.samples = samples

    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Any:
        kept = []
        for share in torch.linspace(0.5, 1, self.samples).tolist():
            kept.append(self.gradient(model, inputs * share, target) * inputs)
        return torch.stack(kept).mean(0)


class OneTooMany(Good):
    def __init__(self, *, budget: Count = 4) -> None:
        self.budget = budget

    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Any:
        total = torch.zeros_like(inputs)
        for share in torch.linspace(0.5, 1, self.budget + 1).tolist():
            total += self.gradient(model, inputs * share, target) * inputs
        return total


class TwiceTheCost(AllAtOnce):
    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Any:
        total = torch.zeros_like(inputs)
        for share in torch.linspace(0.5, 1, 2 * self.samples).tolist():
            total += self.gradient(model, inputs * share, target) * inputs
        return total


class Miscounts(TwiceTheCost):
    def __init__(self, *, samples: Annotated[int, Meta(ge=1, description="Points."), Passes()] = 4) -> None:
        self.samples = samples


class NoGap(Good):
    completeness = True


class WrongSum(Good):
    completeness = True

    def __init__(self, *, baseline: Annotated[str, Meta(description="The start.")] = "zero") -> None:
        self.baseline = baseline

    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Any:
        starts = torch.stack([baseline_image(self.baseline, model, image) for image in inputs])
        values = self.gradient(model, inputs, target) * (inputs - starts)
        return Attribution(values=values, completeness_gap=torch.zeros(len(inputs)))


class Hoards(Good):
    seen: ClassVar[list[Tensor]] = []

    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Any:
        self.seen.append(inputs)
        return super().attribute(model, inputs, target)


class HoardsArrays(Good):
    seen: ClassVar[list[Any]] = []

    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Any:
        self.seen.append(inputs.numpy().copy())
        return super().attribute(model, inputs, target)


class StacksAtTheEnd(Good):
    """Keeps all maps under a name of its own, and no tensor while the network runs."""

    def __init__(self, *, repeats: Count = 500) -> None:
        self.repeats = repeats

    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Any:
        for share in torch.linspace(0.5, 1, self.repeats).tolist():
            model(inputs * share)
        many = np.repeat(inputs.numpy()[None], self.repeats, axis=0)
        return super().attribute(model, inputs + 0 * torch.from_numpy(many.mean(0)), target)


class SwapsReLU6(Good):
    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Any:
        for parent in list(model.module.modules()):
            for name, child in parent.named_children():
                if isinstance(child, nn.ReLU6):
                    setattr(parent, name, nn.ReLU())
        return super().attribute(model, inputs, target)


class PatchesAClass(Good):
    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Any:
        values = super().attribute(model, inputs, target)
        for module in model.module.modules():
            if type(module) is nn.SiLU:
                module.__class__ = nn.ReLU  # type: ignore[assignment]
        return values


@pytest.fixture(autouse=True)
def _no_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plugin that leaves threads behind is waited for after each of many calls."""
    for module in ("xaihub.models.process", "xaihub.testing.process"):
        monkeypatch.setattr(f"{module}.GRACE", 0.002)


class LeavesAThread(Good):
    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Any:
        threading.Thread(target=_LAST.wait, args=(20,), daemon=True).start()
        return super().attribute(model, inputs, target)


class RaisesTheRecursionLimit(Good):
    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Any:
        sys.setrecursionlimit(sys.getrecursionlimit() + 1)
        return super().attribute(model, inputs, target)


class ChangesTheFolder(Good):
    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Any:
        os.chdir(os.path.dirname(os.getcwd()))  # noqa: PTH109, PTH120
        return super().attribute(model, inputs, target)


class SetsTheDtype(Good):
    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Any:
        values = super().attribute(model, inputs, target)
        torch.set_float32_matmul_precision("medium")
        return values


class SeedsInItsConstructor(Good):
    def __init__(self) -> None:
        torch.manual_seed(0)


class Prints(Good):
    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Any:
        os.write(1, b"100 %\n")
        return super().attribute(model, inputs, target)


class _Fails(Good):
    """Fails on one network."""

    toy: ClassVar[str]

    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Any:
        assert model.name != self.toy
        return super().attribute(model, inputs, target)


class NoGELU(_Fails):
    toy = "tiny_mixed"


class NoTuples(_Fails):
    toy = "tiny_structured"


class NoSecondClass(_Fails):
    toy = "tiny_one_output"


class NoLabels(_Fails):
    toy = "tiny_labels"


def record(**more: Any) -> ExplainerSpec:
    return ExplainerSpec(
        **{"name": "bad", "summary": "Bad.", "cost": "1 forward pass", "needs": ("gradients",), **more}
    )


# (explainer, its record, the check that must catch it, what the advice must say)
BAD: list[tuple[type[Explainer], ExplainerSpec | None, str, str]] = [
    (Works, None, "constructor_only_stores", "uses its arguments"),
    (TakesPositions, None, "constructor_only_stores", "put '*' before the first argument"),
    (SaysNothing, None, "constructor_only_stores", 'Meta(description="...")'),
    (BreaksItsLimits, None, "constructor_only_stores", "change the default or its limits"),
    (KeepsMore, None, "constructor_only_stores", "also stores 'cache'"),
    (KeepsMoreInPublic, None, "constructor_only_stores", "declare private state as `_name: T = field("),
    (KeepsHiddenState, None, "constructor_only_stores", "also stores '_cache'"),
    (DescribesNothing, None, "constructor_only_stores", "the parameter 'samples' has no description"),
    (HalfSize, None, "shape_is_that_of_the_input", "(2, 3, 32, 32) for inputs (2, 3, 64, 64): return"),
    (NoTensor, None, "shape_is_that_of_the_input", "returned ndarray instead of a tensor"),
    (DividesByNothing, None, "values_are_finite", "avoid divisions by 0"),
    (SwitchesGradientsOn, None, "model_is_left_as_found", "the requires_grad of"),
    (CountsBatches, None, "model_is_left_as_found", "was changed: undo every change"),
    (LeavesAHook, None, "model_is_left_as_found", "the set of hooks of 'the network' was changed"),
    (TrainsInstead, None, "model_is_left_as_found", "the mode of"),
    (CleansUpInTheLastLine, None, "model_is_left_as_found_after_an_error", "not in a last line"),
    (ClampsInPlace, None, "input_is_left_alone", "work on a copy"),
    (OwnRandomness, None, "same_seed_same_map", "global generator"),
    (RemembersTheFirst, None, "same_seed_same_map", "keep no state on the instance"),
    (LooksAtTheBatch, None, "batch_equals_singles", "compute each row independently"),
    (HiddenRandomness, None, "batch_equals_singles", "set `stochastic = True`"),
    (NoisyFirst, None, "first_pass_is_plain", "drop `plain_first`"),
    (TakesTheMaximum, None, "depends_on_the_target", "explain `target.score(logits)`"),
    (ClaimsNoClass, None, "depends_on_the_target", "drop `class_agnostic`"),
    (NeverAsks, None, "depends_on_the_weights", "compute the map from the network's outputs"),
    (OnlyScalesTheImage, None, "depends_on_the_weights", "(correlations 1.0000, 1.0000, 1.0000)"),
    (NoConvolutions, None, "works_on_a_cnn", "on a convolutional network it raised KeyError"),
    (NoTokens, None, "works_on_a_vit", "on a vision transformer it raised KeyError"),
    (RefusesWithoutAWord, None, "works_on_a_vit", "name in the refusal what the network lacks"),
    (NoChannelsLast, None, "works_with_channels_last", "`Layer.to_grid`"),
    (
        RefusesAll,
        None,
        "works_on_a_network",
        "another size), so nothing else was checked: give the class a static method",
    ),
    (AllAtOnce, None, "memory_is_bounded", "split the work into batches"),
    (KeepsEverything, None, "memory_is_bounded", "batch by batch"),
    (OneTooMany, None, "keeps_to_its_budget", "the parameter 'budget' declares 8 forward passes, but it used 9"),
    (TwiceTheCost, record(cost="samples forward passes"), "keeps_to_its_budget", "correct the record's `cost`"),
    (Miscounts, None, "spends_the_budget_it_takes", "with a budget of 128 passes it used 768"),
    (Good, record(cost=""), "record_is_complete", "its record has no cost"),
    (Good, record(needs=("black-box",)), "record_is_complete", 'give needs=("gradients",)'),
    (NoGap, None, "values_are_complete", "completeness_gap=..."),
    (WrongSum, None, "values_are_complete", "drop `completeness`"),
    (Hoards, None, "nothing_is_left_behind", "more tensors: keep nothing between calls"),
    (HoardsArrays, None, "nothing_is_left_behind", "KiB of arrays and other objects: keep nothing"),
    (StacksAtTheEnd, None, "memory_is_bounded", "each further pass keeps"),
    (SwapsReLU6, None, "model_is_left_as_found", "after `attribute` on 'tiny_mixed', the"),
    (PatchesAClass, None, "model_is_left_as_found", "the class of 'features.2.2' was changed"),
    (LeavesAThread, None, "process_is_left_as_found", "still runs): undo every change"),
    (RaisesTheRecursionLimit, None, "process_is_left_as_found", "the recursion limit (from"),
    (ChangesTheFolder, None, "process_is_left_as_found", "the working directory (from"),
    (SetsTheDtype, None, "process_is_left_as_found", "torch's precision of matrix products (from 'highest'"),
    (SeedsInItsConstructor, None, "random_state_is_left_as_found", "it changed torch's random state"),
    (Prints, None, "nothing_is_printed", r"it printed '100 %\n"),
    (NoGELU, None, "works_with_other_activations", "it raised AssertionError"),
    (NoTuples, None, "works_with_structured_outputs", "it raised AssertionError"),
    (NoSecondClass, None, "works_with_one_output", "it raised AssertionError"),
    (NoLabels, None, "works_with_independent_labels", "it raised AssertionError"),
]


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    """Restore what the explainers above change in the process."""
    folder, limit, precision = Path.cwd(), sys.getrecursionlimit(), torch.get_float32_matmul_precision()
    yield
    os.chdir(folder)
    sys.setrecursionlimit(limit)
    torch.set_float32_matmul_precision(precision)


def failures(subject: ExplainerSubject) -> list[CheckResult]:
    results = [run(item, subject, subject.name) for item in checks("explainer") if item.name != ELSEWHERE]
    return [result for result in results if result.outcome == "failed"]


@pytest.mark.parametrize(
    ("method", "spec", "check", "advice"), BAD, ids=[f"{method.__name__}-{check}" for method, _, check, _ in BAD]
)
def test_a_bad_explainer_fails_one_check_with_advice(
    method: type[Explainer], spec: ExplainerSpec | None, check: str, advice: str
) -> None:
    few = {"budget": 8} if method is OneTooMany else {}
    (result,) = failures(ExplainerSubject(method, spec=spec, parameters=few))

    assert result.check == check
    assert advice in result.advice
    assert re.fullmatch(r"[^\n]+[^.\n]", result.advice)


@pytest.mark.parametrize("method", [DeclaresItsParameters, InheritsParameters, WritesItsConstructor])
def test_both_ways_of_declaring_parameters_are_accepted(method: type[Explainer]) -> None:
    (item,) = checks("explainer", ["constructor_only_stores"])

    assert run(item, ExplainerSubject(method), "it").outcome == "passed"


def test_a_parameter_needs_a_default() -> None:
    (item,) = checks("explainer", ["constructor_only_stores"])

    assert "the parameter 'samples' has no default" in run(item, ExplainerSubject(NeedsAParameter), "it").advice


@pytest.mark.parametrize("method", [Good, BringsItsOwn])
def test_a_good_explainer_fails_none(method: type[Explainer]) -> None:
    assert failures(ExplainerSubject(method)) == []


def test_the_example_model_replaces_networks_that_the_explainer_refuses() -> None:
    subject = ExplainerSubject(BringsItsOwn)
    outcomes = {item.name: run(item, subject, "own").outcome for item in checks("explainer")}

    assert {name for name, outcome in outcomes.items() if outcome == "refused"} == {
        "works_on_a_cnn",
        "works_on_a_vit",
        "works_with_channels_last",
        "works_with_other_activations",
        "works_with_structured_outputs",
        "works_with_one_output",
        "works_with_independent_labels",
    }


def test_every_check_of_explainers_catches_something() -> None:
    assert {check for _, _, check, _ in BAD} == {item.name for item in checks("explainer")} - {ELSEWHERE}
