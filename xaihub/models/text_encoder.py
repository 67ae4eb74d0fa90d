"""What a model knows about text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class TextEncoder:
    """The text side of a model whose network returns the features of images.

    Attributes:
        encode: Returns (T, D) features of T texts, which are compared with (B, D) features of images.
        scale: Factor of the cosine similarity in a logit.
        bias: Added to it. With a bias each text has a probability of its own, a sigmoid (SigLIP, arXiv 2303.15343,
            *stated*); without, the texts exclude each other, and a softmax is taken (CLIP, arXiv 2103.00020, *stated*).
    """

    encode: Callable[[Sequence[str]], Tensor]
    scale: float = 1.0
    bias: float | None = None
