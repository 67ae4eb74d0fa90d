"""Attention rollout and gradient-weighted attention.

Rollout: Abnar and Zuidema 2020, arXiv 2005.00928, Sec. 3: A is 0.5 W + 0.5 I for the attention W of a block, and the
rollout is the product of all A. Gradient-weighted: Chefer, Gur, Wolf 2021, arXiv 2103.15679, Sec. 3.1: A the attention
of a block, R the relevance of each token for each token; for each block A_bar = mean over heads of (dy/dA * A)+ (Eq. 5)
and R <- R + A_bar R (Eq. 6), from R = I.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from torch import Tensor

from xaihub import Attribution, Explainer, Meta, Model, ResolvedTarget
from xaihub_attention.tokens import record


class AttentionRollout(Explainer):
    """Multiply the attention of all blocks; residual connections count as self-attention of a token."""

    class_agnostic = True

    head_fusion: Annotated[
        Literal["mean", "max", "min"], Meta(description="How the heads of a block are combined; the paper averages.")
    ] = "mean"
    discard: Annotated[
        float, Meta(ge=0, lt=1, description="Fraction of each block's weakest attention weights that is set to zero.")
    ] = 0.0

    def attribute(self, model: Model, inputs: Tensor, target: ResolvedTarget) -> Attribution:  # noqa: ARG002
        """Return (B, 1, H, W): the contribution of each patch token to the tokens that the classifier reads."""
        recording = record(model, inputs)
        tokens = recording.maps[0].shape[-1]
        identity = torch.eye(tokens, device=inputs.device)
        rollout = identity.expand(len(inputs), -1, -1)  # (B, T, T)
        for attention in recording.maps:
            W = self._weaken(self._fuse(attention.detach().float()))
            A = 0.5 * W + 0.5 * identity
            rollout = (A / A.sum(-1, keepdim=True)) @ rollout
        return recording.attribution(rollout, (inputs.shape[2], inputs.shape[3]))

    def _fuse(self, attention: Tensor) -> Tensor:
        if self.head_fusion == "mean":
            return attention.mean(1)
        return attention.amax(1) if self.head_fusion == "max" else attention.amin(1)

    def _weaken(self, fused: Tensor) -> Tensor:
        """Set the weakest entries of each image's (T, T) attention to zero."""
        flat = fused.flatten(1)
        weakest = flat.topk(int(self.discard * flat.shape[1]), dim=1, largest=False).indices
        return flat.scatter(1, weakest, 0.0).view_as(fused)


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
