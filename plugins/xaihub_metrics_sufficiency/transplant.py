"""Robustness by transplant: is the target kept when the pixels are pasted onto other backgrounds?"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from xaihub import Case, Measurement, Meta, Metric, MetricRefused, Model, Scene, generator_for
from xaihub.masking import Removal, masked_forward_passes
from xaihub_metrics_sufficiency.sets import Baseline, Pixels, levels, sets_of

Family = Literal["colours", "photos"]
Confidences = Annotated[
    str,
    Meta(description="Minimum fractions of the original confidence that the pixels must keep, comma-separated."),
]
Count = Annotated[int, Meta(ge=1, description="Number of backgrounds; photos are limited to those of the run.")]


class _Transplant(Metric):
    """The fraction of backgrounds on which the explanation's pixels keep the target."""

    family: ClassVar[Family]

    confidences: Confidences = "0,0.25,0.5,0.75,0.9"
    count: Count = 16
    baseline: Baseline = "auto"
    pixels: Pixels = "returned"

    def score(self, case: Case) -> Measurement:
        """Return the mean over backgrounds and confidences; the curve has one point per confidence.

        Raises:
            ParameterError: A confidence is not a number between 0 and 1.
            MetricRefused: The run has no image of another predicted class.
        """
        shares = levels(self.confidences, "confidences")
        found = sets_of(case, self.pixels, self.baseline)
        sets = found.sets(shares)
        wanted = sets[:1] if sets[0].returned else sets  # a returned set is the same for every confidence
        onto = backgrounds(case.scene, self.family, self.count, case.seed)
        kept_share = transplanted(case, torch.stack([one.mask for one in wanted]), onto).mean(1).tolist()
        return Measurement(
            value=sum(kept_share) / len(kept_share),
            curve=(shares[: len(kept_share)], kept_share) if len(kept_share) > 1 else None,
            details={
                "areas": [one.area for one in wanted],
                "robustness": kept_share,
                "backgrounds": len(onto),
                "returned": wanted[0].returned,
                "baseline": found.baseline,
            },
        )


class TransplantColours(_Transplant):
    """The fraction of solid colours on which the explanation's pixels keep the target."""

    family = "colours"


class TransplantPhotos(_Transplant):
    """The fraction of photos of other classes on which the explanation's pixels keep the target."""

    family = "photos"
    needs_pool = True


class TransplantCurve(Metric):
    """Robustness by size: the same fractions of the image for every map, so that no map wins by its size."""

    shares: Annotated[str, Meta(description="Fractions of the image to transplant, comma-separated.")] = (
        "0.05,0.1,0.2,0.3,0.4,0.5"
    )
    family: Annotated[Family, Meta(description="Backgrounds: solid colours, or photos of other classes.")] = "colours"
    count: Count = 16

    @property
    def needs_pool(self) -> bool:  # type: ignore[override]
        """Only photos are taken from the run."""
        return self.family == "photos"

    def score(self, case: Case) -> Measurement:
        """Return the mean over sizes and backgrounds, with robustness by size as a curve.

        Raises:
            ParameterError: A fraction is not a number between 0 and 1.
            MetricRefused: The run has no image of another predicted class.
        """
        shares = levels(self.shares, "shares")
        found = sets_of(case, "ranking", "zero")
        sets = torch.stack([found.prefix(round(share * found.size)) for share in shares])
        onto = backgrounds(case.scene, self.family, self.count, case.seed)
        kept_share = transplanted(case, sets, onto).mean(1).tolist()
        return Measurement(
            value=sum(kept_share) / len(kept_share), curve=(shares, kept_share), details={"backgrounds": len(onto)}
        )


def backgrounds(scene: Scene, family: Family, count: int, seed: int) -> Tensor:
    """Return (n, C, H, W) backgrounds in the model's units, the same for every explanation of this image.

    Colours are uniform in [0, 1] per channel; photos are images of the run whose predicted class is neither the target
    nor the image's own.

    Raises:
        MetricRefused: There is no such image, or photos of another class may hold the target as well.
    """
    outputs = scene.model.outputs
    if scene.target.undecided:
        raise MetricRefused(scene.target.undecided)
    if family == "photos" and not outputs.exclusive:
        raise MetricRefused(f"photos without the target are unknown, because the outputs are {outputs.kind}")

    def make() -> Tensor:
        generator = generator_for(f"transplant onto {family} {seed}", scene.image)
        if family == "colours":
            colours = torch.rand(count, len(scene.image), 1, 1, generator=generator)
            flat = colours.expand(-1, -1, *scene.image.shape[1:])
            return torch.stack([scene.model.preprocessing.normalise(one) for one in flat])
        own = {int(scene.target.index[0]), int(outputs.predicted(scene.logits[None]))}
        order = torch.randperm(len(scene.pool), generator=generator).tolist()
        pool = [scene.pool[position] for position in order]
        others = [image for image, predicted in pool if predicted not in own]
        if not others:
            raise MetricRefused("the run has no image of another predicted class", hint="evaluate more images")
        return torch.stack(others[:count])

    return scene.memory.once(("transplant: backgrounds", family, count, seed), make)


def transplanted(case: Case, sets: Tensor, onto: Tensor) -> Tensor:
    """Return whether (n, H, W) sets keep the target on (m, C, H, W) backgrounds: (n, m), 1 or 0.

    Each pair is one row of a stream of full batches, in plain forward passes.
    """
    pairs = torch.cartesian_prod(torch.arange(len(sets)), torch.arange(len(onto)))
    removal = _Onto(sets, onto)
    batches = masked_forward_passes(case.model, case.scene.image, pairs, removal=removal)
    whole = case.scene.logits[None]
    results = torch.cat([case.scene.target.kept(batch.outputs, whole) for batch in batches]).cpu()
    return results.view(len(sets), len(onto)).double()


class _Onto(Removal):
    """Pixels outside a set show a background; a row of the "masks" is a pair of indices, of a set and a background."""

    def __init__(self, sets: Tensor, onto: Tensor) -> None:
        self._sets, self._onto = sets, onto

    def __call__(self, model: Model, image: Tensor, masks: Tensor) -> Tensor:
        """Return the (n, K) logits."""
        of, on = masks.cpu().unbind(1)
        shown = self._sets[of].unsqueeze(1).to(image.device)
        images = torch.where(shown, image, self._onto[on].to(image))
        return model(images.contiguous(memory_format=torch.channels_last))
