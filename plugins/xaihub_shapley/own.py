"""What a self-explaining network says of itself: its votes as maps, and its own way to be asked about coalitions."""

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
from xaihub_shapley.estimators import MOST_ASKED, MOST_PLAYERS, Estimate, enumerated, interacting
from xaihub_shapley.network import ShapleyVision
from xaihub_shapley.posthoc import shapes

__all__ = ["OwnMasking", "SelfExplained", "make_own_masking"]


class SelfExplained(Explainer):
    """The patch votes that the prediction is the sum of (Fan, Yang, Ma 2025, arXiv 2512.14354).

    Votes are Shapley values as far as training went. With `refine` the rest is asked for: Shapley values are linear in
    the game, so those of what the votes leave unexplained, v(s) - sum of the votes in s, are what they lack.
    """

    stochastic = True
    parallel = True
    together = True
    completeness = True
    plain_first = True

    centre: Annotated[
        bool, Meta(description="Subtract the mean over classes: softmax does not see what all classes share.")
    ] = True
    smooth: Annotated[
        bool, Meta(description="Interpolate between cells; the sum over pixels is then not the class score.")
    ] = False
    every_class: Annotated[bool, Meta(description="Keep the votes for every class beside the map.")] = True
    refine: Annotated[
        Annotated[int, Meta(ge=8, le=MOST_ASKED)] | None,
        Meta(
            description="Forward passes at most that correct the map's votes to the Shapley values of the network's"
            " own masked predictions, in the way of shapley_values; by default none: what training gave is shown."
        ),
    ] = None

    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Attribution:
        """Return (B, 1, H, W): each patch's vote for the target, shared by its pixels."""
        network = _self_explaining(model)
        if inputs.shape[-2:] != network.cell_of_pixel.shape:
            raise ExplainerRefused(
                f"an image of {inputs.shape[-2]}x{inputs.shape[-1]} pixels has another grid of patches than"
                f" {network.size[1]}x{network.size[2]}, which the network was made for"
            )
        held: list[Tensor] = []
        handle = network.head.register_forward_hook(lambda _module, _inputs, votes: held.append(votes))
        try:
            with torch.no_grad():
                logits = model(inputs).float()
        finally:
            handle.remove()
        phi = held[0].float()  # (B, N, K)
        if self.centre:
            phi, logits = phi - phi.mean(2, keepdim=True), logits - logits.mean(1, keepdim=True)
        # Every class is a row to be scored, so a contrast of two classes is the difference of their maps.
        votes = torch.stack([target[row : row + 1].score(phi[row]) for row in range(len(phi))])  # (B, N)
        score = torch.stack([target[row : row + 1].score(logits[row : row + 1])[0] for row in range(len(phi))])
        extras = {"votes": phi.transpose(1, 2).unflatten(2, network.grid).contiguous()} if self.every_class else {}
        if self.refine is not None:
            seed = int(
                torch.randint(0, 2**31, (), generator=current_generator())
            )  # each row draws what it would draw alone
            lacking = [
                self._lacking(model, inputs[row], target[row : row + 1], votes[row], self.refine, seed)
                for row in range(len(votes))
            ]
            votes = votes + torch.stack([found.values for found in lacking]).to(votes)
            score = score + torch.tensor([found.whole for found in lacking]).to(score)
            extras["standard_errors"] = torch.stack([found.stderr for found in lacking]).unflatten(1, network.grid)
        values = network.paint(votes)
        if self.smooth:
            cells = votes.view(-1, 1, *network.grid) * (network.cells / network.cell_of_pixel.numel())
            values = interpolate(cells, size=inputs.shape[-2:], mode="bilinear", align_corners=False).squeeze(1)
        return Attribution(
            values=values.unsqueeze(1),
            completeness_gap=None if self.smooth else (votes.sum(1) - score).abs(),
            layer="head: the patch head, whose outputs are summed to the class scores",
            extras=extras,
            details={
                "grid": list(network.grid),
                "mask": network.mask,
                "value": network.value_of,
                "warm_start": network.warm_start,
                "centred": self.centre,
            },
        )

    def _lacking(
        self, model: Model, image: Tensor, target: ResolvedTarget, votes: Tensor, budget: int, seed: int
    ) -> Estimate:
        """Return the Shapley values of what the votes of one image leave unexplained."""
        network = _self_explaining(model)
        cells = Segments(network.cell_of_pixel)
        if cells.count > MOST_PLAYERS:
            raise ExplainerRefused(f"the votes of {cells.count} patches cannot be refined: at most {MOST_PLAYERS}")

        def score(logits: Tensor) -> Tensor:
            logits = logits.float()
            return target.score(logits - logits.mean(1, keepdim=True) if self.centre else logits)

        def rest(coalitions: Tensor) -> Tensor:
            found = coalition_scores(model, image, cells, coalitions, removal=OwnMasking(network), score=score)
            return found.double() - coalitions.double() @ votes.double().cpu()

        if 2**cells.count <= budget:
            return enumerated(rest, cells.count)
        return interacting(rest, cells.count, budget, torch.Generator().manual_seed(seed), shapes(cells))

    @staticmethod
    def example_model(*, seed: int = 0) -> Model:
        """Return a tiny network that votes, with random weights, for the conformance checks."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            backbone = VisionTransformer(
                img_size=64, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=5, weight_init="skip"
            )
            for weight in backbone.parameters():
                torch.nn.init.normal_(weight, std=0.3)
        module = ShapleyVision(backbone.eval(), size=(3, 64, 64)).requires_grad_(False)
        plain = Preprocessing(spatial=[], size=(3, 64, 64), mean=(0.5,) * 3, std=(0.25,) * 3)
        return Model(module, name="tiny_votes", preprocessing=plain)


class OwnMasking(Removal):
    """Ask a self-explaining network for the value of the visible patches, as it was trained to give it."""

    def __init__(self, network: ShapleyVision) -> None:
        """Hold the network."""
        self.network = network

    def __call__(self, model: Model, image: Tensor, masks: Tensor) -> Tensor:
        """Return (n, K) values; a patch is present if half of its pixels are shown."""
        network = self.network
        flat = network.cell_of_pixel.flatten()
        shown = masks.new_zeros(len(masks), network.cells).index_add_(1, flat, masks.flatten(1))
        present = shown >= 0.5 * torch.bincount(flat, minlength=network.cells)
        values: Tensor = network(image.to(model.device).expand(len(masks), -1, -1, -1), present.float())
        return values


def make_own_masking(model: Model, image: Tensor) -> OwnMasking:  # noqa: ARG001
    """Return the network's own way to hide patches."""
    return OwnMasking(_self_explaining(model))


def _self_explaining(model: Model) -> ShapleyVision:
    if not isinstance(model.module, ShapleyVision):
        raise ExplainerRefused(
            f"model {model.name!r} was not trained to explain itself: its class scores are not a sum of patch votes",
            hint="train one with 'xaihub train DATA --objective shapley', or use shapley_values, which asks any model",
        )
    return model.module
