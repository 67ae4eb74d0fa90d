"""Checks of training objectives: their losses can be minimised, are reproducible, and what is trained can be saved."""

from __future__ import annotations

import json

import torch
from torch import Tensor

from xaihub.errors import XaihubError
from xaihub.objective import Finished
from xaihub.testing.catalogue import check, require, require_record
from xaihub.testing.objective_subject import ROWS, ObjectiveSubject, Run, step
from xaihub.testing.toys import CLASSES

STEPS = 12
RATE = 3e-3
SEEDS = 3  # the loss before and after training is a mean over this many draws of random numbers
WEIGHED = 1e-4  # relative difference of losses that should be equal, which is rounding
SAVED = 1e-5  # absolute difference of class scores after saving and loading, which is rounding


@check("objective", advice="fill in `ObjectiveSpec(summary=..., cost=..., limits=...)`")
def record_is_complete(subject: ObjectiveSubject) -> None:
    """The record has a one-line summary and a cost."""
    require_record(subject.spec)


@check(
    "objective", advice="support one of the toys of `xaihub.testing`, or say in the ModelError what the network lacks"
)
def works_on_a_network(subject: ObjectiveSubject) -> None:
    """It can be trained on one of the kit's networks."""
    subject.start()


@check("objective", advice="return `Losses(terms={name: scalar tensor}, logits=(B, K) class scores)`")
def losses_are_finite(subject: ObjectiveSubject) -> None:
    """The terms are finite scalars, and the logits are those of the batch."""
    found = subject.start().losses()
    require(bool(found.terms), "`loss` returned no terms")
    for name, term in found.terms.items():
        scalar = isinstance(term, Tensor) and term.ndim == 0
        require(scalar, f"the term {name!r} is not a scalar tensor")
        require(bool(torch.isfinite(term)), f"the term {name!r} is {float(term.detach())}")
    require(
        isinstance(found.logits, Tensor) and tuple(found.logits.shape) == (ROWS, len(CLASSES)),
        f"the logits have shape {tuple(getattr(found.logits, 'shape', ()))} instead of {(ROWS, len(CLASSES))}",
    )


@check("objective", advice="compute every term from the network's outputs, without `detach`, `no_grad` or `item`")
def loss_can_be_minimised(subject: ObjectiveSubject) -> None:
    """Gradients reach the network, and twelve optimizer steps on one batch lower the loss."""
    run = subject.start()
    weights = [weight for weight in run.network.parameters() if weight.requires_grad]
    total = run.losses().total
    require(total.requires_grad, "the loss does not depend on the weights")
    gradients = torch.autograd.grad(total, weights, allow_unused=True)
    reached = [gradient for gradient in gradients if gradient is not None]
    require(any(bool(gradient.any()) for gradient in reached), "no weight gets a gradient other than 0")
    bad = any(not bool(torch.isfinite(gradient).all()) for gradient in reached)
    require(not bad, "some gradients are NaN or infinite", advice="avoid divisions by 0 and logarithms of 0")
    optimizer = torch.optim.Adam(weights, lr=RATE)
    before = _mean(run)
    for number in range(STEPS):
        optimizer.zero_grad()
        run.losses(number, seed=number).total.backward()
        optimizer.step()
    after = _mean(run)
    require(
        after < before,
        f"{STEPS} steps of Adam with learning rate {RATE:g} change the loss from {before:.4g} to {after:.4g}",
    )


@check("objective", advice="draw random numbers from `step.generator` or torch's global generator, which are seeded")
def same_step_same_loss(subject: ObjectiveSubject) -> None:
    """The same step of two runs gives bit-identical losses, whatever random numbers are drawn in between."""
    first = subject.start().losses(3, seed=7).total.detach()
    torch.rand(3)
    second = subject.start().losses(3, seed=7).total.detach()
    require(bool(first == second), f"the same step gives losses {float(first):.8g} and {float(second):.8g}")


@check("objective", advice="clone what you change")
def batch_is_left_alone(subject: ObjectiveSubject) -> None:
    """The images and labels of a batch are unchanged afterwards."""
    run = subject.start()
    inputs, labels = run.inputs.clone(), run.labels.clone()
    run.objective.loss(run.network, run.inputs, run.labels, step(0))
    require(run.inputs.equal(inputs), "the images were changed")
    require(run.labels.equal(labels), "the labels were changed")


@check("objective", advice="compute the task's loss by `self.cross_entropy`, or drop `weighs_classes`")
def class_weights_are_applied(subject: ObjectiveSubject) -> None:
    """If it declares that it weighs classes, the loss grows by the same amount from weights 0 to 1 and from 1 to 2."""
    run = subject.start()
    if not run.objective.weighs_classes:
        return
    found = []
    for weight in (0.0, 1.0, 2.0):
        run.objective.class_weights = torch.full((len(CLASSES),), weight)
        found.append(float(run.losses().total.detach()))
    none, once, twice = found
    require(once > none, "the loss does not depend on `class_weights`")
    close = abs((twice - once) - (once - none)) <= WEIGHED * abs(once)
    require(close, f"weights 0, 1 and 2 give the losses {none:.4g}, {once:.4g} and {twice:.4g}")


@check(
    "objective",
    advice="return the network of `wrap` from `finish` with wrapped=True, or the model's own with wrapped=False",
)
def result_can_be_saved_and_loaded(subject: ObjectiveSubject) -> None:
    """The weights that `finish` returns fit a new network, which gives the same class scores; the state is JSON."""
    run = subject.start()
    run.losses()
    try:
        json.dumps(run.objective.state)
    except (TypeError, ValueError) as error:
        require(False, f"`state` is not JSON: {error}", advice="keep JSON types only in `state`")
    finished = run.objective.finish(run.network)
    require(
        isinstance(finished, Finished), f"`finish` returned {type(finished).__name__}", advice="return `Finished(...)`"
    )
    other, _, wrapped = subject.wrapped(seed=1)
    target = wrapped if finished.wrapped else other.module
    try:
        target.load_state_dict(finished.network.state_dict())
    except (RuntimeError, XaihubError) as error:
        require(False, f"the weights do not fit a new network: {' '.join(str(error).split())[:200]}")
    with torch.inference_mode():
        wanted, found = (network.eval()(run.inputs) for network in (finished.network, target))
    same = wanted.shape == found.shape and bool((wanted - found).abs().max() <= SAVED)
    require(same, "after saving and loading, the class scores differ")


def _mean(run: Run) -> float:
    with torch.no_grad():
        return sum(float(run.losses(STEPS, seed=100 + seed).total) for seed in range(SEEDS)) / SEEDS
