"""What the reader of a map must know of the network's precision and of the scale of its outputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from xaihub.models.checks import are_probabilities
from xaihub.models.model import Model

PROBABILITIES = (
    "the model's outputs are probabilities already (non-negative, with sum 1), so the confidences, which are a softmax"
    " of them, are too low; remove its softmax"
)
ENDING = (
    "the network ends in a {ending}, so the confidences, which are a {own} of its outputs, are not its own; remove the"
    " {ending}"
)
PERHAPS = (
    "all outputs are between 0 and 1, as after a sigmoid; if the network ends in one, remove it, because probabilities"
    " are computed as the {own} of the outputs"
)
VALUES = "the model's outputs are values, so output={output} means the value itself"


def notes(model: Model, logits: Tensor, output: Any) -> list[str]:
    """Return notes on (B, K) logits of a model, for a method with the parameter `output`, or None."""
    if model.outputs.classify:
        return [*_precision(model), *_probabilities(model, logits)]
    return [*_precision(model), *[VALUES.format(output=output)] * (output in ("logit", "probability"))]


def _precision(model: Model) -> list[str]:
    limits = torch.finfo(model.dtype)
    if limits.bits > 16:
        return []
    return [f"the network computes in {str(model.dtype).removeprefix('torch.')}, so scores are rounded to"
            f" {100 * limits.eps:.2g} %; convert it with .float() for smaller differences"]  # fmt: skip


def _probabilities(model: Model, logits: Tensor) -> list[str]:
    """Return a note if what should be logits are probabilities already."""
    kind = model.outputs.kind
    if kind == "multiclass" and are_probabilities(logits):
        return [PROBABILITIES]
    rows = logits[:, 1:] if kind == "binary" else logits
    if bool(((rows < 0) | (rows > 1)).any()) or model.ending == "":
        return []
    own = "softmax" if kind == "multiclass" else "sigmoid"
    if model.ending is not None:
        return [ENDING.format(ending=model.ending, own=own)]
    return [PERHAPS.format(own=own)] * (kind != "multiclass")
