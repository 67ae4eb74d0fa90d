"""LRP by zennit, whose composites assign rules to layers. Imported only when it is used."""

from copy import deepcopy
from typing import Annotated, Literal

import torch
from zennit.composites import COMPOSITES
from zennit.torchvision import ResNetCanonizer

from xaihub import Attribution, Explainer, ExplainerRefused, Meta, Model, ResolvedTarget

Rules = Annotated[Literal["epsilon_plus_flat", "epsilon_gamma_box"], Meta(description="The rule per kind of layer.")]


class LRP(Explainer):
    """Propagate the score back from layer to layer, and refuse if it is not conserved."""

    rules: Rules = "epsilon_plus_flat"
    tolerance: Annotated[float, Meta(gt=0, description="Maximum relative error of the map's sum.")] = 0.01

    def attribute(self, model: Model, inputs: torch.Tensor, target: ResolvedTarget) -> Attribution:
        """Return (B, C, H, W) relevance, which sums to the score."""
        score = target.score(model(inputs))
        options = {"canonizers": [ResNetCanonizer()], "zero_params": "bias"}
        if self.rules == "epsilon_gamma_box":
            ends = [model.preprocessing.normalise(torch.full_like(inputs, end)) for end in (0, 1)]
            options |= {"low": torch.minimum(*ends), "high": torch.maximum(*ends)}
        inputs.requires_grad_()
        try:  # on a copy, because zennit merges batch norms into convolutions, in some networks incorrectly
            with COMPOSITES[self.rules](**options).context(deepcopy(model.module)) as network:
                logits = network(inputs)
                (chosen,) = torch.autograd.grad(target.score(logits).sum(), logits, retain_graph=True)  # 1 or 0
                (relevance,) = torch.autograd.grad(logits, inputs, grad_outputs=chosen * logits.detach())
            gap = float(((relevance.sum((1, 2, 3)) - score).abs() / score.abs()).max())
        except RuntimeError as error:
            raise ExplainerRefused(f"lrp is not valid for {model.name!r}, on which zennit fails: {error}") from error
        if not gap <= self.tolerance:  # also if it is NaN
            hint = "some operation has no rule; torchvision/resnet18 and torchvision/vgg16 work"
            raise ExplainerRefused(f"relevance differs from the score of {model.name!r} by {gap:.0%}", hint=hint)
        return Attribution(values=relevance, details={"conservation_gap": gap})
