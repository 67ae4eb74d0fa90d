"""Checks of a map's meaning: it depends on class, weights and score, on every kind of network."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from xaihub.errors import XaihubError
from xaihub.explainers.explainer import Explainer
from xaihub.masking import baseline_image
from xaihub.models.model import Model
from xaihub.params import parameters
from xaihub.ranking import correlation
from xaihub.testing.catalogue import applies, check, require
from xaihub.testing.explainer_subject import ExplainerSubject, enlarged, same

# Maps with a higher correlation count as equal. With all layers randomised, every built-in explainer is below 0.9, also
# those with few masks, whose mean contributes to every map.
SAME = 0.98
STAGES = 3
# The largest completeness gap, as a fraction of the required sum.
LARGEST_GAP = 0.05
IMAGES = 4
TIMES = 32  # with this many times the samples, an error should fall to about 1 / sqrt(32) = 0.18
CONTROL = "control"


@check("explainer", advice="explain `target.score(logits)`, or set `class_agnostic = True` if classes have equal maps")
def depends_on_the_target(subject: ExplainerSubject) -> None:
    """Different classes of one image have different maps, unless the explainer declares `class_agnostic`."""
    model = subject.model
    maps = [subject.values(model, subject.images(1), target) for target in (0, 1, 2)]
    equal = [same(maps[0], other, tolerance=1e-4) for other in maps[1:]]
    if subject.method.class_agnostic:
        require(all(equal), "it declares `class_agnostic`, but maps differ by class", advice="drop `class_agnostic`")
    else:
        require(not all(equal), "the maps of three classes are identical")


@check("explainer", advice="compute the map from the network's outputs, activations or gradients")
def depends_on_the_weights(subject: ExplainerSubject) -> None:
    """The map changes when the network's layers are randomised successively, from the head down."""
    control = subject.spec is not None and CONTROL in subject.spec.tags
    applies(not control, "it is tagged as a control, which does not use the network")
    model = subject.model
    inputs = subject.images(IMAGES // 2)
    original = subject.values(model, inputs, 0)
    stages = _cascade(model, subject.toy(seed=99))
    trials = [subject.try_on(model, inputs, 0) for _ in stages]
    # A method that now refuses depends on the weights as well.
    similar = [_correlation(original, trial.values) if trial.worked else 0.0 for trial in trials]
    shown = ", ".join(f"{value:.4f}" for value in similar)
    require(min(similar) < SAME, f"the map does not change when the layers are randomised (correlations {shown})")


@check("explainer", advice="raise the default budget, correct the method, or drop `completeness`")
def values_are_complete(subject: ExplainerSubject) -> None:
    """If the explainer declares `completeness`, its values sum to the score minus the baseline's score."""
    applies(subject.method.completeness, "it does not declare `completeness`")
    gap = _missed(subject, _default(subject))
    if gap > LARGEST_GAP and subject.method.stochastic and enlarged(subject, TIMES):
        # A sum that is complete only in expectation converges as 1 / sqrt(n) with the number of samples.
        few, many = (_missed(subject, subject.make(**enlarged(subject, times))) for times in (1, TIMES))
        found = f"with {TIMES} times the samples, the sum of its values is still off by {many:.0%}"
        require(many <= max(LARGEST_GAP, 0.6 * few), f"{found} (before: {few:.0%})")
        return
    require(gap <= LARGEST_GAP, f"the sum of its values is off by {gap:.0%} on average")


def _default(subject: ExplainerSubject) -> Explainer:
    """Return the explainer with its default budget instead of the quick one."""
    known = parameters(subject.method)
    default = {name: known[name].default for name in subject.parameters if name not in ("features", *subject.given)}
    return subject.make(**default)


def _missed(subject: ExplainerSubject, explainer: Explainer) -> float:
    """Return the completeness gap over some images, as a fraction of the required sum."""
    model = subject.model
    gaps, sizes = [], []
    for row in range(IMAGES):
        inputs = subject.images(IMAGES)[row : row + 1]
        trial = subject.try_on(model, inputs, explainer=explainer, seed=row)
        applies(trial.worked, "it gives no map with its default parameters")
        gap = trial.explanations[0].metadata["completeness_gap"]
        require(gap is not None, "it reports no gap", advice="return Attribution(values=..., completeness_gap=...)")
        difference = _difference(model, inputs[0], explainer.parameters)
        # With features, one value covers many pixels, so the sum over pixels is another one.
        if difference is not None and "features" not in parameters(subject.method):
            gap = max(float(gap), abs(float(trial.values.double().sum()) - difference))
        gaps.append(abs(float(gap)))
        sizes.append(abs(difference) if difference is not None else float(model.predict(inputs).max().abs()))
    return sum(gaps) / max(sum(sizes), 1e-12)


def _difference(model: Model, image: Tensor, values: dict[str, object]) -> float | None:
    """Return the score minus the baseline's score, or None if the baseline is unknown."""
    baseline = values.get("baseline")
    if not isinstance(baseline, str) or values.get("output", "logit") != "logit":
        return None
    try:
        start = baseline_image(baseline, model, image)
    except XaihubError:
        return None
    logits = model.predict(torch.stack([image, start]))
    index = int(logits[0].argmax())
    return float(logits[0, index] - logits[1, index])


def _cascade(model: Model, donor: Model) -> Iterator[None]:
    """Copy the donor's weights into the network, a third of the layers at a time, from the head down."""
    own, new = model.module.state_dict(), donor.module.state_dict()
    layers = list(dict.fromkeys(name.rpartition(".")[0] for name in own))[::-1]
    for stage in range(STAGES):
        part = set(layers[len(layers) * stage // STAGES : len(layers) * (stage + 1) // STAGES])
        for name, weight in own.items():
            if name.rpartition(".")[0] in part:
                weight.copy_(new[name])
        yield


def _correlation(first: Tensor, second: Tensor) -> float:
    """Return the absolute correlation of two maps, averaged over the images; that of a constant map is 1 if equal."""
    found = correlation(first.flatten(1), second.flatten(1)).abs()
    equal = (first == second).flatten(1).all(1).double()
    return float(torch.where(found.isnan(), equal, found).mean())
