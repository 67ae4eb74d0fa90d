"""Forward passes that run a model's network in another way, such as with some of its units switched off."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor

from xaihub.models.model import Model

Network = Callable[[Tensor], Tensor]


def variant_scores(model: Model, name: str, run: Callable[[Network, Tensor], Tensor], inputs: Tensor) -> Tensor:
    """Return the (B, K) float32 logits that `run(network, inputs)` returns, which calls the network in its own way.

    Within `masked_forward_passes`, its operations are recorded once and repeated from then on, with logits that are
    equal up to rounding (1e-4 of the largest logit or 1); each row then counts as one forward pass. A function whose
    operations depend on values, and a network with hooks on its parts, are run as they are.

    Args:
        model: The model.
        name: What the function computes; equal names stand for equal functions.
        run: Given the network as a function and the inputs; it uses no tensors but these and the network's weights.
        inputs: (B, ...) tensor, which is left unchanged.
    """
    executor = model.executor.variant(name, run)

    def choose(own: Tensor) -> Network:
        fast = executor.network(model.module, own)
        return partial(run, model) if fast is model.module else fast

    return model.passed(inputs, choose)
