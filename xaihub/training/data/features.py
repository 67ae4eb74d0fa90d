"""Training the last part only: the features that enter it are computed once and kept in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from xaihub.training.data.loaders import Batch, ImageLoader, Order


@dataclass(frozen=True, kw_only=True)
class FeatureLoader:
    """Cached inputs of the trainable part, in the order in which images would come.

    Attributes:
        order: The rows of each step.
        train: Features and labels to train on.
        val: Features and labels held out.
    """

    order: Order
    train: tuple[Tensor, Tensor]
    val: tuple[Tensor, Tensor]

    @property
    def steps(self) -> int:
        """Optimizer steps per epoch."""
        return self.order.steps

    def epoch(self, epoch: int, start: int = 0) -> Iterator[list[Batch]]:
        """Yield the batches of each optimizer step of an epoch (counted from 0), from step `start` on."""
        features, labels = self.train
        for step in self.order.epoch(epoch, start):
            yield [Batch(inputs=features[rows], labels=labels[rows], fraction=fraction) for rows, fraction in step]

    def validation(self) -> Iterator[Batch]:
        """Yield this process's validation batches."""
        features, labels = self.val
        for rows in self.order.held_out(len(labels)):
            yield Batch(inputs=features[rows], labels=labels[rows], fraction=len(rows) / len(labels))


def cache_features(
    network: nn.Module,
    part: nn.Module,
    loader: ImageLoader,
    *,
    device: torch.device,
    watch: Callable[[str, int, int], None],
) -> FeatureLoader | None:
    """Run every image through the frozen network once.

    Returns None if training on features would not be equivalent: if `part` takes more than one tensor, or does not end
    at the logits.
    """
    total = len(loader.data.train) + len(loader.data.val)
    tables: list[tuple[Tensor, Tensor]] = []
    done = 0
    for indices in (loader.data.train, loader.data.val):
        kept: list[Tensor] = []
        labels: list[Tensor] = []
        for batch in loader.plain(indices):
            features = _inputs_of(network, part, batch.inputs.to(device))
            if features is None:
                return None
            kept.append(features)
            labels.append(batch.labels)
            done += len(batch.labels)
            watch("computing features", done, total)
        tables.append((torch.cat(kept), torch.cat(labels)) if kept else (torch.empty(0), torch.empty(0)))
    return FeatureLoader(order=loader.order, train=tables[0], val=tables[1])


def _inputs_of(network: nn.Module, part: nn.Module, inputs: Tensor) -> Tensor | None:
    """Return the single tensor that enters `part`, if the output of `part` is the network's output."""
    seen: list[tuple[Any, Any]] = []
    handle = part.register_forward_hook(lambda _module, given, output: seen.append((given, output)))
    try:
        network.eval()
        with torch.no_grad():
            logits = network(inputs)
    finally:
        handle.remove()
    if len(seen) != 1 or len(seen[0][0]) != 1:
        return None
    (features,), output = seen[0]
    same = isinstance(features, Tensor) and isinstance(output, Tensor) and output.shape == logits.shape
    return features.detach().clone() if same and torch.equal(output, logits) else None
