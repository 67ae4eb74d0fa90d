"""LRP by zennit: composites say which rule is used where. Imported only when it is used."""

from typing import Annotated, Literal

import torch
from torch import Tensor
from zennit import composites
from zennit.torchvision import ResNetCanonizer

from xaihub import Attribution, Explainer, ExplainerRefused, Meta, Model, ResolvedTarget


class LRP(Explainer):
    """Hand the score back from layer to layer, and refuse if some of it was lost or made on the way."""

    def __init__(
        self,
        *,
        rules: Annotated[
            Literal["epsilon_plus_flat", "epsilon_alpha2_beta1_flat", "epsilon_gamma_box"],
            Meta(description="Which rule is used where."),
        ] = "epsilon_plus_flat",
        tolerance: Annotated[
            float, Meta(gt=0, description="How far the sum may be from the score, as a share of it.")
        ] = 0.01,
    ) -> None:
        self.rules = rules
        self.tolerance = tolerance

    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Attribution:
        """Return (B, C, H, W) relevance, which sums to the score."""
        options = {"canonizers": [ResNetCanonizer()], "zero_params": "bias"}
        if self.rules == "epsilon_gamma_box":
            black, white = (model.preprocessing.normalise(inputs.new_full(inputs.shape, value)) for value in (0, 1))
            options |= {"low": torch.minimum(black, inputs), "high": torch.maximum(white, inputs)}
        composite = composites.COMPOSITES[self.rules](**options)
        inputs.requires_grad_()
        with composite.context(model.module):
            logits = model(inputs)
            score = target.score(logits)
            (chosen,) = torch.autograd.grad(score.sum(), logits, retain_graph=True)  # 1 for the class, 0 for others
            (relevance,) = torch.autograd.grad(logits, inputs, grad_outputs=chosen * logits.detach())
        lost = (relevance.sum((1, 2, 3)) - score).abs() / score.abs()
        if not bool((lost <= self.tolerance).all()):  # also if it is NaN
            raise ExplainerRefused(
                f"lrp does not hold on {model.name!r}: its relevance differs from the score by {float(lost.max()):.0%}",
                hint="it has an operation without a rule, such as a residual sum; try torchvision/resnet18 or vgg16",
            )
        return Attribution(values=relevance, details={"conservation_gap": float(lost.max())})
