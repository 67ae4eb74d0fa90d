"""Gradient-weighted attention (Chefer, Gur, Wolf 2021, "Generic Attention-model Explainability", arXiv 2103.15679).

Notation follows Sec. 3.1: A the attention of a block, R the relevance of each token for each token; for each block
A_bar = mean over heads of (dy/dA * A)+ (Eq. 5) and R <- R + A_bar R (Eq. 6), from R = I.
"""

from __future__ import annotations

import torch
from torch import Tensor

from xaihub import Attribution, Explainer, Model, ResolvedTarget
from xaihub_attention.tokens import record

__all__ = ["AttentionGradient"]


class AttentionGradient(Explainer):
    """Sum the attention over the blocks, weighted by the target's gradient."""

    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Attribution:
        """Return (B, 1, H, W): the relevance of each patch token for the tokens that the classifier reads."""
        recording = record(model, inputs)
        gradients = torch.autograd.grad(target.score(recording.logits).sum(), recording.maps)
        R = torch.eye(recording.maps[0].shape[-1], device=inputs.device).expand(len(inputs), -1, -1)
        for A, gradient in zip(recording.maps, gradients, strict=True):
            A_bar = (gradient * A.detach()).float().relu().mean(1)
            R = R + A_bar @ R
        return recording.attribution(R, (inputs.shape[2], inputs.shape[3]))
