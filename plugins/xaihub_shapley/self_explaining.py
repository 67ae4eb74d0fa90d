"""The explainer `shapley`, which maps a network's own patch scores, and the baseline `own_masking`."""

from __future__ import annotations

from typing import Annotated

import torch
from timm.models import VisionTransformer
from torch import Tensor
from torch.nn.functional import interpolate

from xaihub import (
    Attribution,
    Explainer,
    ExplainerRefused,
    Meta,
    Model,
    Preprocessing,
    ResolvedTarget,
    current_generator,
)
from xaihub.masking import Removal, Segments, coalition_scores
from xaihub_shapley.estimators import LARGEST_BUDGET, MOST_PLAYERS, Estimate, estimate
from xaihub_shapley.gaussian_process import shapes
from xaihub_shapley.held_out import R2, describe
from xaihub_shapley.network import ShapleyVision


class SelfExplained(Explainer):
    """The patch scores whose sum is the prediction (Fan, Yang, Ma 2025, arXiv 2512.14354).

    Patch scores are Shapley values as far as training went. `refine` estimates what is missing: Shapley values are
    linear in the game, so those of v(s) - sum of the patch scores in s are the correction (derived). Every map reports
    how well patch scores did on held-out images, as the model's card records it.
    """

    stochastic = True
    parallel = True
    together = True
    completeness = True
    plain_first = True

    centre: Annotated[
        bool, Meta(description="Subtract the mean over classes, because softmax ignores what all classes share.")
    ] = True
    smooth: Annotated[
        bool, Meta(description="Interpolate between patches; the map then no longer sums to the class score.")
    ] = False
    every_class: Annotated[bool, Meta(description="Save the patch scores of every class with the map.")] = True
    refine: Annotated[
        Annotated[int, Meta(ge=8, le=LARGEST_BUDGET)] | None,
        Meta(
            description="Maximum number of forward passes that correct the map to the Shapley values of the network's"
            " own masked predictions (estimator interactions); by default the map shows the patch scores as trained."
        ),
    ] = None

    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Attribution:
        """Return (B, 1, H, W): each patch's score for the target, spread evenly over its pixels."""
        network = _self_explaining(model)
        if inputs.shape[-2:] != network.cell_of_pixel.shape:
            raise ExplainerRefused(
                f"an image of {inputs.shape[-2]}x{inputs.shape[-1]} pixels has another grid of patches than"
                f" {network.size[1]}x{network.size[2]}, the network's input size"
            )
        held: list[Tensor] = []
        handle = network.head.register_forward_hook(lambda _module, _inputs, scores: held.append(scores))
        try:
            with torch.no_grad():
                logits = model(inputs).float()
        finally:
            handle.remove()
        phi = held[0].float()  # (B, N, K)
        if self.centre:
            phi, logits = phi - phi.mean(2, keepdim=True), logits - logits.mean(1, keepdim=True)
        # Patch scores are scored like logits, so a contrast of two classes is the difference of their maps.
        rows = [target[row : row + 1] for row in range(len(phi))]
        patches = torch.stack([one.score(phi[row]) for row, one in enumerate(rows)])  # (B, N)
        score = torch.stack([one.score(logits[row : row + 1])[0] for row, one in enumerate(rows)])
        extras = {"patch_scores": phi.transpose(1, 2).unflatten(2, network.grid).contiguous()}
        extras = extras if self.every_class else {}
        if self.refine is not None:
            # Each row draws what it would draw alone.
            seed = int(torch.randint(0, 2**31, (), generator=current_generator()))
            missing = [
                self._missing(model, inputs[row], one, patches[row], self.refine, seed) for row, one in enumerate(rows)
            ]
            patches = patches + torch.stack([found.values for found in missing]).to(patches)
            score = score + torch.tensor([found.whole for found in missing]).to(score)
            extras["standard_errors"] = torch.stack([found.stderr for found in missing]).unflatten(1, network.grid)
        measured = model.card.measured.get(R2)
        values = network.spread(patches)
        if self.smooth:
            cells = patches.view(-1, 1, *network.grid) * (network.cells / network.cell_of_pixel.numel())
            values = interpolate(cells, size=inputs.shape[-2:], mode="bilinear", align_corners=False).squeeze(1)
        return Attribution(
            values=values.unsqueeze(1),
            completeness_gap=None if self.smooth else (patches.sum(1) - score).abs(),
            layer="head: the patch head, whose outputs sum to the class scores",
            extras=extras,
            details={
                "grid": list(network.grid),
                "mask": network.mask,
                "value": network.value_of,
                "warm_start": network.warm_start,
                "centred": self.centre,
                **({} if measured is None else {R2: measured}),
            },
            warnings=[] if measured is None or self.refine is not None else [describe(measured)],
        )

    def _missing(
        self, model: Model, image: Tensor, target: ResolvedTarget, scores: Tensor, budget: int, seed: int
    ) -> Estimate:
        """Return the Shapley values of what the patch scores of one image leave unexplained."""
        network = _self_explaining(model)
        patches = Segments(network.cell_of_pixel)
        if patches.count > MOST_PLAYERS:
            raise ExplainerRefused(f"{patches.count} patch scores cannot be refined, at most {MOST_PLAYERS}")

        def score(logits: Tensor) -> Tensor:
            logits = logits.float()
            return target.score(logits - logits.mean(1, keepdim=True) if self.centre else logits)

        def rest(coalitions: Tensor) -> Tensor:
            found = coalition_scores(model, image, patches, coalitions, removal=OwnMasking(network), score=score)
            return found.double() - coalitions.double() @ scores.double().cpu()

        generator = torch.Generator().manual_seed(seed)
        return estimate(rest, patches.count, budget, generator, shapes=shapes(patches))

    @staticmethod
    def example_model(*, seed: int = 0) -> Model:
        """Return a tiny network with random weights, for the conformance checks."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            backbone = VisionTransformer(
                img_size=64, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=5, weight_init="skip"
            )
            for weight in backbone.parameters():
                torch.nn.init.normal_(weight, std=0.3)
        module = ShapleyVision(backbone.eval(), size=(3, 64, 64)).requires_grad_(False)
        plain = Preprocessing(spatial=[], size=(3, 64, 64), mean=(0.5,) * 3, std=(0.25,) * 3)
        return Model(module, name="tiny_shapley", preprocessing=plain)


class OwnMasking(Removal):
    """Evaluate a self-explaining network on its visible patches, in the way it was trained."""

    def __init__(self, network: ShapleyVision) -> None:
        self.network = network

    def __call__(self, model: Model, image: Tensor, masks: Tensor) -> Tensor:
        """Return (n, K) values; a patch counts as visible if at least half of its pixels are."""
        network = self.network
        flat = network.cell_of_pixel.flatten()
        shown = masks.new_zeros(len(masks), network.cells).index_add_(1, flat, masks.flatten(1))
        present = shown >= 0.5 * torch.bincount(flat, minlength=network.cells)
        values: Tensor = network(image.to(model.device).repeat(len(masks), 1, 1, 1), present.float())
        return values


def make_own_masking(model: Model, image: Tensor) -> OwnMasking:  # noqa: ARG001
    """Return the network's own way of masking patches."""
    return OwnMasking(_self_explaining(model))


def _self_explaining(model: Model) -> ShapleyVision:
    if not isinstance(model.module, ShapleyVision):
        raise ExplainerRefused(
            f"model {model.name!r} was not trained to explain itself: its class scores are not a sum of patch scores",
            hint="train one with 'xaihub train DATA --objective shapley', or use shapley_values, which works with any"
            " model",
        )
    return model.module
