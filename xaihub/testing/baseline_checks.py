"""Checks of removal operators: masks have their meaning, rows do not interact, and nothing is changed."""

from __future__ import annotations

import torch
from torch import Tensor

from xaihub.masking import Removal
from xaihub.models.snapshot import Snapshot
from xaihub.testing.baseline_subject import ROWS, BaselineSubject
from xaihub.testing.catalogue import check, require
from xaihub.testing.toys import CLASSES

# Differences of class scores, as a fraction of the largest, that come from the order of sums in a batch.
TOLERANCE = 1e-3


@check("baseline", advice="fill in `BaselineSpec(summary=..., limits=...)`")
def record_is_complete(subject: BaselineSubject) -> None:
    """The record has a one-line summary."""
    require(bool(subject.spec.summary), "its record has no summary")
    require(len(subject.spec.summary.splitlines()) == 1, "its summary is longer than one line")


@check("baseline", advice="return an instance of a subclass of `xaihub.masking.Removal`, such as `Fill(image)`")
def is_a_removal(subject: BaselineSubject) -> None:
    """Its target, called with a model and an image, returns a removal operator."""
    _, _, removal = subject.start()
    require(isinstance(removal, Removal), f"it returned {type(removal).__name__}")


@check("baseline", advice="return the network's (n, K) class scores, one row per mask")
def scores_are_finite(subject: BaselineSubject) -> None:
    """Its scores are finite, one row per mask, also if everything is masked."""
    scores = subject.scores()
    require(isinstance(scores, Tensor), f"it returned {type(scores).__name__}")
    shape = (ROWS, len(CLASSES))
    require(tuple(scores.shape) == shape, f"the scores have shape {tuple(scores.shape)} instead of {shape}")
    require(bool(torch.isfinite(scores).all()), "some scores are NaN or infinite", advice="avoid divisions by 0")


@check("baseline", advice="keep pixels where the mask is 1, and replace those where it is 0")
def full_mask_keeps_the_image(subject: BaselineSubject) -> None:
    """With everything visible, the scores are those of the image, within 0.1 % of the largest."""
    model, image, removal = subject.start()
    with torch.inference_mode():
        scores, wanted = removal(model, image, subject.masks())[:1], model.predict(image[None])
    require(_near(scores, wanted), "with everything visible, the scores are not those of the image")


@check("baseline", advice="use the mask")
def mask_changes_the_scores(subject: BaselineSubject) -> None:
    """With everything masked, the scores are not those of the image."""
    scores = subject.scores()
    require(not _near(scores[:1], scores[1:2]), "the scores are the same with everything masked")


@check("baseline", advice="compute each row from its own mask; draw random numbers once, when the operator is created")
def rows_are_independent(subject: BaselineSubject) -> None:
    """A mask has the same scores in a batch and alone, within 0.1 % of the largest."""
    model, image, removal = subject.start()
    masks = subject.masks()
    with torch.inference_mode():
        together = removal(model, image, masks)
        alone = torch.cat([removal(model, image, mask[None]) for mask in masks])
    require(_near(together, alone), "the scores of a mask depend on the other masks of its batch")


@check("baseline", advice="clone what you change, and undo changes of the network in a `with` block or in `finally`")
def nothing_is_changed(subject: BaselineSubject) -> None:
    """The image, the masks and the network are unchanged afterwards."""
    model, image, removal = subject.start()
    masks = subject.masks()
    before, state = image.clone(), Snapshot(model.module).with_contents()
    with torch.inference_mode():
        removal(model, image, masks)
    require(image.equal(before), "the image was changed")
    require(masks.equal(subject.masks()), "the masks were changed")
    require(not (changes := state.changes()), f"it {'; '.join(changes)}")


def _near(first: Tensor, second: Tensor) -> bool:
    largest = float(torch.maximum(first.abs().max(), second.abs().max()))
    return bool((first - second).abs().max() <= TOLERANCE * largest)
