"""Several threads explain at the same time: every result equals the one computed alone."""

from __future__ import annotations

import random
import threading
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import xaihub
from tests.networks import model, noise
from xaihub import Explainer, Explanation, Model
from xaihub.errors import ExplainerRefused, PluginError
from xaihub.notices import caught
from xaihub.randomness import current_generator, drawing, forked_generator, seeded

THREADS = 4
EXPLAINERS: dict[str, dict[str, Any]] = {
    "gradcam": {},
    "hirescam": {},
    "saliency": {},
    "guided_backprop": {},
    "scorecam": {},
    "deeplift": {},
    "smoothgrad": {"samples": 8},
    "gradient_shap": {"samples": 8},
    "rise": {"masks": 40},
    "lime": {"samples": 40, "features": "grid:3"},
    "kernel_shap": {"samples": 40, "features": "grid:3"},
    "shap": {"evaluations": 40, "features": "grid:4"},
    "occlusion": {"baseline": "noise"},
    "first_principles": {"budget": 40, "features": "grid:3"},
}
REPETITIONS = [3, pytest.param(20, marks=pytest.mark.slow)]


def make(name: str) -> Explainer:
    return xaihub.get_explainer(name, **EXPLAINERS[name])


def in_threads(work: Callable[[int], None]) -> None:
    """Run `work(0)` to `work(THREADS - 1)` at the same time; the first error is raised here."""
    errors: list[BaseException] = []
    start = threading.Barrier(THREADS)

    def run(number: int) -> None:
        try:
            start.wait()
            work(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("repetitions", REPETITIONS)
@pytest.mark.parametrize("count", [1, THREADS])
def test_four_threads_compute_what_each_computes_alone(count: int, repetitions: int) -> None:
    models = [model() for _ in range(count)]
    rows = noise(THREADS).split(1)
    alone = {(name, row): make(name).explain(models[0], rows[row])[0] for name in EXPLAINERS for row in range(THREADS)}

    def work(number: int) -> None:
        names = sorted(EXPLAINERS)
        random.Random(number).shuffle(names)
        for repetition in range(repetitions):
            for name in names:
                row = (repetition + number) % THREADS
                found, expected = make(name).explain(models[number % count], rows[row])[0], alone[name, row]
                assert torch.allclose(found.values, expected.values, rtol=1e-4, atol=1e-7), name
                for key in ("forward_passes", "backward_passes", "warnings"):
                    assert found.metadata[key] == expected.metadata[key], (name, key)

    in_threads(work)
    for one in models:
        assert all(weight.requires_grad for weight in one.module.parameters())
        assert not any(len(part._forward_hooks) + len(part._backward_hooks) for part in one.module.modules())


def test_predictions_of_other_threads_do_not_disturb_an_explanation() -> None:
    one, rows = model(), noise(2)
    alone, logits = make("gradcam").explain(one, rows[:1])[0], one.predict(rows[1:])

    def work(number: int) -> None:
        for _ in range(20):
            if number:
                assert torch.equal(one.predict(rows[1:]), logits)
            else:
                found = make("gradcam").explain(one, rows[:1])[0]
                assert torch.equal(found.values, alone.values)
                assert found.metadata["forward_passes"] == 1

    in_threads(work)


def test_random_numbers_of_other_threads_do_not_disturb_an_explanation() -> None:
    one, rows = model(), noise()
    names = ["rise", "lime", "kernel_shap", "smoothgrad", "occlusion"]
    alone = {name: make(name).explain(one, rows)[0] for name in names}

    def work(number: int) -> None:
        for name in names * 3:
            if number:
                torch.rand(1000)
            else:
                assert torch.equal(make(name).explain(one, rows)[0].values, alone[name].values), name

    in_threads(work)


SMALL = {"budget": 40, "iterations": 2, "samples": 40, "masks": 40, "features": "grid:3", "steps": 4}


@pytest.mark.parametrize("name", [spec.name for spec in xaihub.Hub().explainers])
def test_parallel_explainers_leave_the_global_generators_alone(name: str) -> None:
    explainer = xaihub.get_explainer(name)
    small = {key: value for key, value in SMALL.items() if key in explainer.parameters}
    noisy = {"baseline": "noise"} if explainer.parameters.get("baseline") in ("blur", "grey", "zero") else {}
    one = model()
    before = torch.get_rng_state(), random.getstate(), str(np.random.get_state())
    with suppress(ExplainerRefused):
        xaihub.get_explainer(name, **small, **noisy).explain(one, noise())
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), str(np.random.get_state())) == before[1:]


def test_two_models_of_one_network_share_a_lock_and_others_do_not() -> None:
    network = model().module
    first, whole = model(network), model(torch.nn.Sequential(network, torch.nn.Identity()))
    assert first._locks == whole._locks
    assert first._locks != model()._locks
    both = model(torch.nn.Sequential(first.module, torch.nn.Sequential(model().module)))
    assert first._locks[0] in both._locks


def test_an_ensemble_of_two_models_holds_the_locks_of_both() -> None:
    first, second = model(), model()
    both = model(torch.nn.ModuleList([first.module, second.module]))
    assert {id(lock) for lock in both._locks} == {id(first._locks[0]), id(second._locks[0])}


class _Drawing(Explainer):
    """Draws from the global generators of all three libraries, as a third-party method may."""

    stochastic = True

    def attribute(self, model: Model, inputs: Tensor, target: Any) -> Tensor:
        values = torch.rand(1, 1, *inputs.shape[2:])
        for _ in range(20):
            values = values + torch.rand(()) + float(np.random.rand()) + random.random()
        return values


def test_an_explainer_that_draws_from_the_global_generators_runs_alone() -> None:
    models, rows = [model() for _ in range(THREADS)], noise()
    explainer = _Drawing()
    expected = explainer.explain(models[0], rows, seed=3)[0].values

    def work(number: int) -> None:
        for _ in range(20):
            found: Explanation = explainer.explain(models[number], rows, seed=3)[0]
            assert torch.equal(found.values, expected)

    in_threads(work)


class _Nested(Explainer):
    parallel = True

    def attribute(self, model: Model, inputs: Tensor, target: Any) -> Tensor:
        return _Drawing().explain(model, inputs)[0].values[None]


def test_a_parallel_explainer_cannot_use_the_global_generators() -> None:
    with pytest.raises(PluginError, match="declares parallel used the global random state"):
        _Nested().explain(model(), noise())
    _Drawing().explain(model(), noise())  # the locks are free again


class TestGenerators:
    def test_the_own_generator_draws_what_the_global_one_would(self) -> None:
        with seeded(7):
            expected = torch.rand(5), torch.randn(5, generator=current_generator())
        with drawing(7):
            found = torch.rand(5, generator=current_generator()), torch.randn(5, generator=current_generator())
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])

    def test_outside_it_is_the_global_generator(self) -> None:
        assert current_generator() is torch.default_generator
        with drawing(1):
            assert current_generator() is not torch.default_generator
        assert current_generator() is torch.default_generator

    def test_forking_repeats_the_draws(self) -> None:
        with drawing(1):
            with forked_generator():
                first = torch.rand(3, generator=current_generator())
            assert torch.equal(torch.rand(3, generator=current_generator()), first)


class TestWarnings:
    def test_each_thread_hears_its_own_once(self) -> None:
        before = list(warnings.filters)

        def work(number: int) -> None:
            for repetition in range(50):
                with caught() as heard:
                    warnings.warn(f"thread {number}", stacklevel=1)
                    warnings.warn(f"thread {number}", stacklevel=1)
                assert heard == [f"thread {number}"], repetition

        in_threads(work)
        assert list(warnings.filters) == before


def test_creating_explainers_does_not_disturb_one_that_draws_in_another_thread() -> None:
    one, rows = model(), noise(1)
    alone = make("gradient_shap").explain(one, rows)[0].values

    def work(number: int) -> None:
        for _ in range(40):
            if number:
                make("saliency")
            else:
                assert torch.equal(make("gradient_shap").explain(one, rows)[0].values, alone)

    in_threads(work)
