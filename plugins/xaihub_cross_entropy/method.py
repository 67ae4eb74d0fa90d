"""Cross-entropy with optional label smoothing."""

from __future__ import annotations

from typing import Annotated

from torch import Tensor, nn

from xaihub import Losses, Meta, Objective, Step


class CrossEntropy(Objective):
    """The mean over the batch of -log softmax(logits)[label]."""

    on_features = True
    soft_labels = True
    weighs_classes = True

    smoothing: Annotated[float, Meta(ge=0, lt=1, description="Label smoothing.")] = 0.0

    def loss(self, network: nn.Module, inputs: Tensor, labels: Tensor, step: Step) -> Losses:  # noqa: ARG002
        """Return the cross-entropy of one batch."""
        logits = network(inputs)
        cost = self.cross_entropy(logits, labels, smoothing=self.smoothing)
        return Losses(terms={"cross_entropy": cost}, logits=logits)
