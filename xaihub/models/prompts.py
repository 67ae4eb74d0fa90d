"""Text prompts: a head whose classes are texts, for models with a text encoder, such as CLIP and SigLIP."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from xaihub.errors import ModelError, ParameterError
from xaihub.models.hashing import hash_state
from xaihub.models.headed import Head
from xaihub.models.model import Model
from xaihub.models.outputs import Outputs
from xaihub.models.similarity import features, like


class Prompts(Head):
    """Zero-shot classification: one column per text, scale x cosine similarity + bias.

    A single text without a bias has no probability, because a softmax of one logit is 1; its cosine similarity is then
    the value (*our choice*).
    """

    def __init__(self, texts: Sequence[str] = ()) -> None:
        """Use `texts` as classes."""
        self.texts = tuple(texts)
        self._known = nn.Parameter(torch.empty(0, 0), requires_grad=False)
        self._scale, self._bias = 1.0, 0.0

    def bind(self, model: Model) -> None:
        """Compute the features of the texts.

        Raises:
            ParameterError: There are no texts, one is empty or given twice, or the model cannot read text.
            ModelError: The text encoder does not return one row of features per text.
        """
        if not self.texts or not all(isinstance(text, str) and text.strip() for text in self.texts):
            raise ParameterError("a prompt is empty", hint='give --text "a dog"')
        if len(set(self.texts)) < len(self.texts):
            raise ParameterError("a prompt is given twice", hint="give each --text once")
        encoder = model.text_encoder
        if encoder is None:
            raise ParameterError(
                f"model {model.name!r} has no text encoder, so it cannot be compared with text",
                hint="use --text with a model such as openclip/ViT-B-32",
            )
        with torch.inference_mode():
            known = encoder.encode(self.texts)
        if not isinstance(known, Tensor) or known.ndim != 2 or len(known) != len(self.texts):
            raise ModelError(f"the text encoder of {model.name!r} does not return one row of features per text")
        # A parameter is known to be constant, whereas a tensor with as many rows as a batch may come from its images.
        self._known = nn.Parameter(normalize(known.detach().float().clone(), dim=1), requires_grad=False)
        single = len(self.texts) == 1 and encoder.bias is None
        self._scale, self._bias = (1.0, 0.0) if single else (encoder.scale, encoder.bias or 0.0)
        self.outputs = Outputs("regression" if single else "multiclass" if encoder.bias is None else "multilabel")
        self.classes = self.texts
        self.title = f"similarity to the prompts {', '.join(map(repr, self.texts))}"
        self.identity = hash_state({"prompts": self._known, "scale": self._scale, "bias": self._bias})

    def rows(self, outputs: Any) -> Tensor:
        """Return (B, T) logits, or the (B, 1) cosine similarity of a single text without a bias."""
        found = features(outputs)
        if found.shape[1] != self._known.shape[1]:
            raise ModelError(f"images have {found.shape[1]} features, but texts have {self._known.shape[1]}")
        return normalize(found, dim=1) @ self._known.to(found).T * self._scale + self._bias


def aimed(
    model: Model, *, like_images: Sequence[Any] = (), texts: Sequence[str] = (), head: Head | None = None
) -> Model:
    """Return a model of the same network that scores similarity to images or to texts, or what a head does, if any.

    Raises:
        ParameterError: There are several of these, a text cannot be used, or the model has no text encoder.
        InputError: An image cannot be read.
        ModelError: The network does not return one row of features per image.
    """
    given = [flag for flag, value in (("--like", like_images), ("--text", texts), ("a head", head)) if value]
    if len(given) > 1:
        raise ParameterError(f"{' and '.join(given)} ask for different scores", hint="give one of them")
    if like_images:
        return like(model, like_images)
    head = Prompts(texts) if texts else head
    return model if head is None else model.with_head(head)
