"""What a model's outputs mean: class scores, labels, one binary logit, values, or an embedding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from xaihub.errors import ParameterError

if TYPE_CHECKING:  # cards are read without torch
    from torch import Tensor

Kind = Literal["multiclass", "multilabel", "binary", "regression", "embedding"]
KINDS: tuple[Kind, ...] = get_args(Kind)
HOW = "declare it: --outputs KIND, `outputs: KIND` in the card, or Model(..., outputs='KIND')"


@dataclass(frozen=True)
class Outputs:
    """The meaning of the (B, K) rows of scores that a model returns.

    Attributes:
        kind: "multiclass" (one of K classes, softmax), "multilabel" (each of K labels or not, sigmoid), "binary" (the
            columns are minus the logit and the logit, sigmoid), "regression" (K values), "embedding" (K features, which
            have no names).
        unit: The unit of the values, such as "years".
        default: The target that is explained if none is given; empty for the predicted class or the only value.
    """

    kind: Kind = "multiclass"
    unit: str = ""
    default: str = ""

    @classmethod
    def parse(cls, text: str | Outputs) -> Outputs:
        """Read "multiclass", "multilabel", "binary", "embedding", "regression" or "regression:UNIT".

        Raises:
            ParameterError: It is none of these.
        """
        if isinstance(text, Outputs):
            return text
        kind, colon, unit = str(text).partition(":")
        found = next((known for known in KINDS if known == kind.strip().lower()), None)
        if found is None or (colon and found != "regression"):
            raise ParameterError(f"outputs cannot be {str(text)!r}", hint=f"use {', '.join(KINDS)} or regression:UNIT")
        return cls(found, unit.strip())

    def __str__(self) -> str:
        """The text that `parse` reads."""
        return f"{self.kind}:{self.unit}" if self.unit else self.kind

    @property
    def classify(self) -> bool:
        """Whether the outputs are logits of classes or labels, which have probabilities; otherwise they are values."""
        return self.kind in ("multiclass", "multilabel", "binary")

    @property
    def exclusive(self) -> bool:
        """Whether an image has exactly one of the classes."""
        return self.kind in ("multiclass", "binary")

    def predicted(self, rows: Tensor) -> Tensor:
        """Return the best class of each of (N, K) rows: (N,). Values predict no class; their first output is meant."""
        return rows.argmax(1) if self.classify else rows.new_zeros(len(rows)).long()

    def names(self, classes: tuple[str, ...]) -> tuple[str, ...]:
        """Return the names of the columns, from those that were given."""
        if self.kind == "embedding":
            return ()
        if self.kind != "binary":
            return classes
        if not classes:
            return ("negative", "positive")
        return (f"not {classes[0]}", classes[0]) if len(classes) == 1 else classes

    def name(self, index: int, classes: tuple[str, ...], count: int) -> str:
        """Return the name of one of `count` columns."""
        if index < len(classes):
            return classes[index]
        if self.classify:
            return f"class {index}"
        noun = "feature" if self.kind == "embedding" else "value"
        return noun if count == 1 else f"{noun} {index}"


def class_scores(rows: Tensor, output: str, outputs: Outputs = Outputs()) -> Tensor:
    """Return the (N, K) scores of all columns of (N, K) outputs on one scale.

    Args:
        rows: (N, K) outputs.
        output: "logit" (the outputs themselves), "probability" (softmax or sigmoid, by the kind of the outputs),
            "log_probability" or "value". Values have one scale: for them "logit" and "probability" also mean the value.
        outputs: The kind of the outputs.

    Raises:
        ParameterError: `output` is none of these, or the outputs have no such scale.
    """
    if output not in ("logit", "probability", "log_probability", "value"):
        raise ParameterError(f"output cannot be {output!r}", hint="use logit, probability or log_probability")
    if not outputs.classify:
        if output == "log_probability":
            raise ParameterError(f"the outputs are values ({outputs.kind}), which have no log-probability")
        return rows
    if output == "value":
        raise ParameterError(f"the outputs are logits ({outputs.kind}), not values", hint="use logit or probability")
    if output == "logit":
        return rows
    if outputs.kind == "multiclass":
        return rows.softmax(1) if output == "probability" else rows.log_softmax(1)
    if output == "probability":
        return rows.sigmoid()
    from torch.nn.functional import logsigmoid

    return logsigmoid(rows)
