"""Images with planted evidence, and a network that responds to exactly this evidence.

The network's score for a class is a sum over pixels; each contributes its amount of the class's colour. The true map is
therefore known exactly for any image: masking a pixel subtracts its contribution, whatever else is masked.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, interpolate, relu

from xaihub.explainers.explainer import Explainer
from xaihub.explainers.target import ResolvedTarget
from xaihub.metric import Case, Scene
from xaihub.models.model import Model
from xaihub.models.preprocessing import Preprocessing
from xaihub.testing.toys import SIDE

CLASSES = ("red", "green", "blue", "yellow")
# Weights of a pixel in [-1, 1] for each class's colour; grey pixels of any brightness have 0.
_COLOURS = ((1.0, -0.5, -0.5), (-0.5, 1.0, -0.5), (-0.5, -0.5, 1.0), (0.5, 0.5, -1.0))
_LEAST = 1.2  # the threshold of a contribution, so that yellow counts neither as red nor as green
# The score of an image with a complete patch: a probability of 0.95 among four classes.
_PEAK = 4.0
PATCH = 20  # pixels per side
Planted = Literal["oracle", "shuffled", "inverted"]


# The excess of one complete patch over the threshold; at full saturation a colour has the value 2.
_FULL = (2 - _LEAST) * PATCH * PATCH


def planted_model() -> Model:
    """Return the network that responds to planted evidence, with the classes red, green, blue and yellow."""
    preprocessing = Preprocessing(spatial=[], size=(3, SIDE, SIDE), mean=(0.5,) * 3, std=(0.5,) * 3)
    # The score of each class: the sum over pixels of its colour above the threshold.
    colour, head = nn.Conv2d(3, len(CLASSES), 1), nn.Linear(len(CLASSES), len(CLASSES), bias=False)
    steps = {"colour": colour, "excess": nn.ReLU(), "pool": nn.AdaptiveAvgPool2d(1), "flat": nn.Flatten(), "head": head}
    module = nn.Sequential(OrderedDict(steps)).requires_grad_(False)
    colour.weight.copy_(torch.tensor(_COLOURS)[:, :, None, None])
    colour.bias.fill_(-_LEAST)  # type: ignore[union-attr]
    head.weight.copy_(torch.eye(len(CLASSES)) * _PEAK * SIDE * SIDE / _FULL)
    return Model(module, name="planted", preprocessing=preprocessing, classes=CLASSES)


def exact_evidence(inputs: Tensor, target: ResolvedTarget | int) -> Tensor:
    """Return the (B, 1, H, W) contributions of the pixels of (B, 3, H, W) inputs to the class score."""
    weight = torch.tensor(_COLOURS, device=inputs.device)[:, :, None, None]
    scale = _PEAK / _FULL
    parts = relu(conv2d(inputs, weight) - _LEAST) * scale  # (B, K, H, W)
    if isinstance(target, int):
        return parts[:, target : target + 1]
    return torch.stack([target[row : row + 1].score(parts[row].flatten(1).T) for row in range(len(inputs))]).view(
        len(inputs), 1, *inputs.shape[2:]
    )


class PlantedExplainer(Explainer):
    """Returns the exact evidence of a planted model, or a shuffled or inverted copy of it."""

    planted: Planted = "oracle"

    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Tensor:  # noqa: ARG002
        """Return (B, 1, H, W) values."""
        exact = exact_evidence(inputs, target)
        if self.planted == "shuffled":
            order = torch.randperm(exact[0].numel(), generator=torch.Generator().manual_seed(0))
            return exact.flatten(1)[:, order.to(exact.device)].view_as(exact)
        return exact if self.planted == "oracle" else exact.amax((2, 3), keepdim=True) - exact


def planted_scenes(count: int = 4, *, seed: int = 0) -> list[Scene]:
    """Return scenes of a planted model, each with a patch of one colour on a noisy grey background.

    The truth is the patch. Every second scene also has a paler patch of another colour, which supports another class.
    The pool of each scene consists of images with the other colours.
    """
    model = planted_model()
    generator = torch.Generator().manual_seed(seed)
    pool = [(_image(_places(generator)[:1], [colour], generator), colour) for colour in range(len(CLASSES))]
    scenes = []
    for number in range(count):
        colour = number % len(CLASSES)
        places = _places(generator)[: 1 + number % 2]
        image = _image(places, [colour, (colour + 1) % len(CLASSES)], generator)
        truth = torch.zeros(SIDE, SIDE, dtype=torch.bool)
        truth[places[0]] = True
        scenes.append(
            Scene(
                model=model,
                image=image,
                logits=model.predict(image[None])[0],
                target=ResolvedTarget(index=torch.tensor([colour])),
                truth=truth,
                pool=[item for item in pool if item[1] != colour],
            )
        )
    return scenes


def planted_case(scene: Scene, planted: Planted = "oracle", *, seed: int = 0) -> Case:
    """Return a case of a scene with the true map, or a shuffled or inverted copy of it."""
    explainer = PlantedExplainer(planted=planted)
    logits = scene.logits[None]
    (explanation,) = explainer.explain(scene.model, scene.image[None], scene.target.fixed(), logits=logits)
    return Case(scene=scene, explanation=explanation, explainer=explainer, seed=seed)


def at_corner(scene: Scene, *, bottom: bool, right: bool) -> Scene:
    """Return the scene with image and truth rolled so that the truth lies in a corner."""
    truth = scene.truth
    if truth is None:
        return scene
    shifts = []
    for inside, far in ((truth.any(1), bottom), (truth.any(0), right)):
        places = inside.nonzero().flatten().tolist()
        shifts.append(len(inside) - 1 - places[-1] if far else -places[0])
    image = scene.image.roll(shifts, (1, 2))
    return replace(scene, image=image, truth=truth.roll(shifts, (0, 1)), memory=type(scene.memory)())


def _places(generator: torch.Generator) -> list[tuple[slice, slice]]:
    """Return the positions of two patches, one in each half of the image, in random order."""
    tops = torch.randint(2, SIDE - PATCH - 2, (2,), generator=generator).tolist()
    lefts = torch.randint(2, SIDE // 2 - PATCH, (2,), generator=generator).tolist()
    lefts[1] += SIDE // 2
    places = [(slice(t, t + PATCH), slice(left, left + PATCH)) for t, left in zip(tops, lefts, strict=True)]
    return places if torch.rand((), generator=generator) < 0.5 else places[::-1]


def _image(places: Sequence[tuple[slice, slice]], colours: Sequence[int], generator: torch.Generator) -> Tensor:
    """Return a (3, H, W) image in [-1, 1]: smooth grey with patches, each paler than the previous one."""
    coarse = torch.rand(1, 1, 8, 8, generator=generator) - 0.5
    ground = interpolate(coarse, size=(SIDE, SIDE), mode="bilinear", align_corners=False)[0]
    image = ground.expand(3, -1, -1).clone()
    for saturation, place, colour in zip((1.0, 0.8), places, colours, strict=False):
        purest = torch.tensor(_COLOURS[colour]).sign()  # 2 in the units of the threshold
        image[:, *place] = saturation * purest[:, None, None]
    return image
