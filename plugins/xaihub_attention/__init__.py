"""Attention of vision transformers: which tokens flow into the class score."""

from xaihub.hookspecs import hookimpl
from xaihub.specs import ExplainerSpec, Paper

_LIMITS = (
    "Needs self-attention over all tokens of the image in every block (ViT, DeiT, BEiT, EVA); refuses windows"
    " (Swin, MaxViT), channel or class attention (XCiT, CaiT), pooled tokens (PiT) and attention-pooled heads."
)


@hookimpl
def xaihub_register_explainers() -> list[ExplainerSpec]:
    """Register attention rollout and gradient-weighted attention."""
    return [
        ExplainerSpec(
            name="attention_rollout",
            target="xaihub_attention.rollout:AttentionRollout",
            summary="Multiply the attention of all blocks, whatever the class.",
            paper=Paper(
                title="Quantifying Attention Flow in Transformers", year=2020, url="https://arxiv.org/abs/2005.00928"
            ),
            needs=("attention",),
            cost="1 forward pass, and 1 backward pass through the last block",
            limits=f"{_LIMITS} The same for every class.",
            variant="Eq. 1: half attention, half identity, rows summing to one; with discard=0 and head_fusion=mean"
            " nothing is added to the paper.",
            tags=("attention", "class-agnostic"),
        ),
        ExplainerSpec(
            name="attention_gradient",
            target="xaihub_attention.gradient:AttentionGradient",
            summary="Add up attention over the blocks, weighted by the class's gradient.",
            paper=Paper(
                title="Generic Attention-model Explainability for Interpreting Bi-Modal and Encoder-Decoder"
                " Transformers",
                year=2021,
                url="https://arxiv.org/abs/2103.15679",
            ),
            needs=("attention", "gradients"),
            cost="1 forward pass and 1 backward pass",
            limits=_LIMITS,
            variant="Eq. 5 and 6 for self-attention; without a class token, the mean over the tokens that are pooled.",
            tags=("attention", "gradient"),
        ),
    ]
