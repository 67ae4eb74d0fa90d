"""Training the last part only: what goes into it is computed once and kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from xaihub.training.feed import Batch, ImageFeed, Order

__all__ = ["FeatureFeed", "cache_features"]


@dataclass(frozen=True, kw_only=True)
class FeatureFeed:
    """The inputs of the part that learns, kept in memory, in the order in which images would come.

    Attributes:
        order: Which rows make a step.
        train: Features and labels to learn from.
        val: Features and labels held out.
    """

    order: Order
    train: tuple[Tensor, Tensor]
    val: tuple[Tensor, Tensor]

    @property
    def steps(self) -> int:
        """Optimiser steps an epoch."""
        return self.order.steps

    def epoch(self, epoch: int, start: int = 0) -> Iterator[list[Batch]]:
        """Yield the batches of each optimiser step of an epoch (from 0), from step `start` on."""
        features, labels = self.train
        for step in self.order.epoch(epoch, start):
            yield [Batch(inputs=features[rows], labels=labels[rows], share=share) for rows, share in step]

    def validation(self) -> Iterator[Batch]:
        """Yield the batches held out."""
        features, labels = self.val
        for rows in self.order.held_out(len(labels)):
            yield Batch(inputs=features[rows], labels=labels[rows], share=len(rows) / len(labels))


def cache_features(
    network: nn.Module,
    part: nn.Module,
    feed: ImageFeed,
    *,
    device: torch.device,
    watch: Callable[[str, int, int], None],
) -> FeatureFeed | None:
    """Run every image through the frozen network once; return None where that would not be the same.

    It is not where the part takes anything but one tensor, or does not end at the logits.
    """
    total = len(feed.data.train) + len(feed.data.val)
    tables: list[tuple[Tensor, Tensor]] = []
    done = 0
    for batches in (feed.plain(), _whole(feed)):
        kept: list[Tensor] = []
        labels: list[Tensor] = []
        for batch in batches:
            features = _inputs_of(network, part, batch.inputs.to(device))
            if features is None:
                return None
            kept.append(features)
            labels.append(batch.labels)
            done += len(batch.labels)
            watch("computing features", done, total)
        tables.append((torch.cat(kept), torch.cat(labels)) if kept else (torch.empty(0), torch.empty(0)))
    return FeatureFeed(order=feed.order, train=tables[0], val=tables[1])


def _whole(feed: ImageFeed) -> Iterator[Batch]:
    """Yield every row held out, on each process: their order in memory is that of the data."""
    alone = ImageFeed(feed.data, feed.preprocessing, feed.config)
    yield from alone.validation()


def _inputs_of(network: nn.Module, part: nn.Module, inputs: Tensor) -> Tensor | None:
    """Return the one tensor that goes into `part`, if what comes out of it is what the network returns."""
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
