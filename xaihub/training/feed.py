"""Batches: in an order fixed by (seed, epoch), from any step on, this process's share of each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from xaihub.errors import InputError
from xaihub.models.preprocessing import Preprocessing
from xaihub.training.augment import Augmentation
from xaihub.training.config import Config
from xaihub.training.data import Split
from xaihub.training.draws import generator

__all__ = ["Batch", "Feed", "ImageFeed", "Order"]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Rows that go through the network at once.

    Attributes:
        inputs: What the network takes, on the CPU or where it was kept.
        labels: (B,) class indices.
        share: This batch's share of the rows of its optimiser step, over all processes.
    """

    inputs: Tensor
    labels: Tensor
    share: float


class Feed(Protocol):
    """Batches to learn from and batches held out."""

    @property
    def steps(self) -> int:
        """Optimiser steps an epoch."""

    def epoch(self, epoch: int, start: int = 0) -> Iterator[list[Batch]]:
        """Yield the batches of each optimiser step of an epoch (from 0), from step `start` on."""

    def validation(self) -> Iterator[Batch]:
        """Yield the batches held out, always the same."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """Which rows make a step.

    A last step with fewer rows than the others is left out, since every epoch leaves out other rows; if there are
    fewer rows than one step takes, all of them are one step.

    Attributes:
        count: Rows to learn from.
        batch: Rows that go through the network at once.
        accumulate: Such batches a step.
        seed: Of the run.
        rank: Of this process.
        world: Number of processes.
    """

    count: int
    batch: int
    accumulate: int
    seed: int
    rank: int = 0
    world: int = 1

    @property
    def steps(self) -> int:
        """Optimiser steps an epoch."""
        return max(self.count // (self.batch * self.accumulate), 1)

    def epoch(self, epoch: int, start: int = 0) -> list[list[tuple[list[int], float]]]:
        """Return, for each step, this process's rows of each batch with the batch's share of the step."""
        rows = min(self.batch * self.accumulate, self.count)
        order = torch.randperm(self.count, generator=generator("order", self.seed, epoch)).tolist()
        made = []
        for step in range(start, self.steps):
            whole = order[step * rows : (step + 1) * rows]
            # Where few rows make a whole step, its batches are as alike as can be: a norm cannot do with a single row.
            count = ceil(rows / self.batch)
            batches = [whole[place * rows // count : (place + 1) * rows // count] for place in range(count)]
            # A process whose part is smaller counts less: the mean over processes is then that over rows. One without
            # any computes a row that counts nothing, so that all take part in the exchange of gradients.
            parts = [batch[self.rank :: self.world] for batch in batches]
            made.append(
                [(part or batch[:1], len(part) * self.world / rows) for part, batch in zip(parts, batches, strict=True)]
            )
        return made

    def held_out(self, count: int) -> list[list[int]]:
        """Return this process's rows of each batch of `count` rows in order."""
        batches = [list(range(first, min(first + self.batch, count))) for first in range(0, count, self.batch)]
        return [part for batch in batches if (part := batch[self.rank :: self.world])]


class ImageFeed:
    """Reads images when they are needed, crops and flips those to learn from."""

    def __init__(
        self, data: Split, preprocessing: Preprocessing, config: Config, *, rank: int = 0, world: int = 1
    ) -> None:
        """Fix the order of rows; nothing is read yet."""
        self.data, self.preprocessing, self.config = data, preprocessing, config
        self.order = Order(
            count=len(data.train),
            batch=config.batch_size,
            accumulate=config.accumulate,
            seed=config.seed,
            rank=rank,
            world=world,
        )
        if min(config.batch_size, len(data.train)) < world:
            raise InputError(f"{world} processes cannot share batches of {config.batch_size} rows")
        self.augmentation = Augmentation(
            preprocessing=preprocessing,
            seed=config.seed,
            min_crop=config.min_crop,
            flip=not data.images.upright,
        )

    @property
    def steps(self) -> int:
        """Optimiser steps an epoch."""
        return self.order.steps

    def epoch(self, epoch: int, start: int = 0) -> Iterator[list[Batch]]:
        """Yield the batches of each optimiser step of an epoch (from 0), from step `start` on."""
        plan = self.order.epoch(epoch, start)
        drawn = epoch if self.config.augments else None
        batches = self._load(self.data.train, [rows for step in plan for rows, _ in step], drawn)
        for step in plan:
            made = []
            for _, share in step:
                inputs, labels = next(batches)
                made.append(Batch(inputs=inputs, labels=labels, share=share))
            yield made

    def validation(self) -> Iterator[Batch]:
        """Yield the batches held out, without augmentation."""
        plan = self.order.held_out(len(self.data.val))
        for rows, (inputs, labels) in zip(plan, self._load(self.data.val, plan, None), strict=True):
            yield Batch(inputs=inputs, labels=labels, share=len(rows) / len(self.data.val))

    def plain(self) -> Iterator[Batch]:
        """Yield the rows to learn from in their own order, without augmentation, all on each process."""
        plan = [
            list(range(first, min(first + self.order.batch, self.order.count)))
            for first in range(0, self.order.count, self.order.batch)
        ]
        for rows, (inputs, labels) in zip(plan, self._load(self.data.train, plan, None), strict=True):
            yield Batch(inputs=inputs, labels=labels, share=len(rows) / self.order.count)

    def _load(self, places: Sequence[int], plan: list[list[int]], epoch: int | None) -> Iterator[tuple[Tensor, Tensor]]:
        """Read the rows of a plan, in worker processes if there are any."""
        rows = _Rows(self, places, epoch)
        # A generator of its own: the loader would draw from the global one.
        loader: Any = DataLoader(
            rows,
            batch_sampler=plan,
            num_workers=self.config.workers,
            collate_fn=_stack,
            generator=torch.Generator(),
        )
        for bad, inputs, labels in loader:
            if bad:
                raise InputError(bad, hint="it could be read before; the checkpoint is kept")
            yield inputs, labels

    def row(self, index: int, epoch: int | None) -> Tensor:
        """Return the (C, H, W) input of an image, with the crop of an epoch or without any."""
        image = self.data.images.read(index)
        if epoch is not None:
            return self.augmentation(image, epoch, index)
        return self.preprocessing(image)[0]


class _Rows(Dataset[tuple[str, Tensor, int]]):
    def __init__(self, feed: ImageFeed, places: Sequence[int], epoch: int | None) -> None:
        self.feed, self.places, self.epoch = feed, places, epoch

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, row: int) -> tuple[str, Tensor, int]:
        index = self.places[row]
        try:
            return "", self.feed.row(index, self.epoch), self.feed.data.images.labels[index]
        except InputError as error:  # raised in the main process, as it is; a worker would add its traceback
            return str(error), torch.empty(0), 0


def _stack(rows: list[tuple[str, Tensor, int]]) -> tuple[str, Tensor, Tensor]:
    bad = next((why for why, _, _ in rows if why), "")
    inputs = torch.empty(0) if bad else torch.stack([inputs for _, inputs, _ in rows])
    return bad, inputs, torch.tensor([label for _, _, label in rows])
