"""Attention of vision transformers: how much each token contributes to the class score."""

from xaihub.hookspecs import hookimpl
from xaihub.specs import ExplainerSpec, Paper

_LIMITS = (
    "Needs self-attention over all image tokens in every block (ViT, DeiT, BEiT, EVA). Refuses window attention"
    " (Swin, MaxViT), channel or class attention (XCiT, CaiT), pooled tokens (PiT) and attention-pooled heads."
)


@hookimpl
def xaihub_register_explainers() -> list[ExplainerSpec]:
    """Register attention rollout and gradient-weighted attention."""
    return [
        ExplainerSpec(
            name="attention_rollout",
            target="xaihub_attention.methods:AttentionRollout",
            summary="Product of the attention of all blocks (class-independent).",
            paper=Paper("Quantifying Attention Flow in Transformers", 2020, "https://arxiv.org/abs/2005.00928"),
            needs=("attention",),
            cost="1 forward pass, and 1 backward pass through the last block",
            limits=f"{_LIMITS} The same for every class.",
            variant="Stated: Eq. 1, half attention and half identity, rows summing to one. Our choice: discard and"
            " head_fusion, which the defaults (0 and mean) switch off.",
            tags=("attention", "class-agnostic"),
        ),
        ExplainerSpec(
            name="attention_gradient",
            target="xaihub_attention.methods:AttentionGradient",
            summary="Sum of the attention over the blocks, weighted by the gradient of the class score.",
            paper=Paper(
                "Generic Attention-model Explainability for Interpreting Bi-Modal and Encoder-Decoder Transformers",
                2021,
                "https://arxiv.org/abs/2103.15679",
            ),
            needs=("attention", "gradients"),
            cost="1 forward pass and 1 backward pass",
            limits=_LIMITS,
            variant="Stated: Eq. 5 and 6 for self-attention. Our choice: without a class token, the mean over the"
            " pooled tokens.",
            tags=("attention", "gradient"),
        ),
    ]
