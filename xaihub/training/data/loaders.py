"""Batches in an order fixed by (seed, epoch), from any step on, split among processes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from xaihub.errors import InputError
from xaihub.models.preprocessing import Preprocessing
from xaihub.training.config import Config
from xaihub.training.data.augmentation import Augmentation
from xaihub.training.data.images import Split
from xaihub.training.seeds import generator


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Rows of one forward pass.

    Attributes:
        inputs: (B, ...) images or features, on the CPU or on the device that caches them.
        labels: (B,) class indices.
        fraction: This batch's fraction of the rows of its optimizer step, over all processes.
    """

    inputs: Tensor
    labels: Tensor
    fraction: float


class Loader(Protocol):
    """Training and validation batches."""

    @property
    def steps(self) -> int:
        """Optimizer steps per epoch."""

    def epoch(self, epoch: int, start: int = 0) -> Iterator[list[Batch]]:
        """Yield the batches of each optimizer step of an epoch (counted from 0), from step `start` on."""

    def validation(self) -> Iterator[Batch]:
        """Yield the validation batches, always the same."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """The rows of each optimizer step.

    An incomplete last step is dropped, since every epoch drops other rows; if there are fewer rows than one step
    takes, all of them make one step.

    Attributes:
        count: Number of training rows.
        weights: How often each row is drawn relative to others, with replacement; empty to use each row once.
        batch: Rows per forward pass, over all processes.
        accumulate: Batches per optimizer step.
        seed: The run's seed.
        rank: This process's number.
        world: Number of processes.
    """

    count: int
    batch: int
    accumulate: int
    seed: int
    rank: int = 0
    world: int = 1
    weights: Sequence[float] = ()

    @property
    def steps(self) -> int:
        """Optimizer steps per epoch."""
        return max(self.count // (self.batch * self.accumulate), 1)

    def epoch(self, epoch: int, start: int = 0) -> list[list[tuple[list[int], float]]]:
        """Return, for each step, this process's rows of each batch with the batch's fraction of the step."""
        rows = min(self.batch * self.accumulate, self.count)
        draw = generator("order", self.seed, epoch)
        if self.weights:
            order = torch.tensor(self.weights).multinomial(self.count, replacement=True, generator=draw).tolist()
        else:
            order = torch.randperm(self.count, generator=draw).tolist()
        count = ceil(rows / self.batch)
        steps = []
        for step in range(start, self.steps):
            whole = order[step * rows : (step + 1) * rows]
            # Batches of nearly equal size: batch normalisation fails on a batch of a single row.
            batches = [whole[turn * rows // count : (turn + 1) * rows // count] for turn in range(count)]
            # A process with fewer rows counts less, so that the mean over processes is the mean over rows. A process
            # without rows computes one that counts zero, because all must take part in the exchange of gradients.
            parts = [batch[self.rank :: self.world] for batch in batches]
            steps.append(
                [(part or batch[:1], len(part) * self.world / rows) for part, batch in zip(parts, batches, strict=True)]
            )
        return steps

    def in_sequence(self, count: int) -> list[list[int]]:
        """Return the batches of rows 0 to `count` - 1, unshuffled and over all processes."""
        return [list(range(first, min(first + self.batch, count))) for first in range(0, count, self.batch)]

    def held_out(self, count: int) -> list[list[int]]:
        """Return this process's rows of each unshuffled batch."""
        return [part for batch in self.in_sequence(count) if (part := batch[self.rank :: self.world])]


def balancing(labels: Sequence[int]) -> list[float]:
    """Return the weights of rows under which all classes are drawn equally often."""
    counts = Counter(labels)
    return [1 / counts[label] for label in labels]


def inverse_frequencies(labels: Sequence[int], classes: int) -> Tensor:
    """Return the (classes,) weights n / (K n_k) of K classes with n_k of n labels, whose mean over labels is 1."""
    counts = torch.bincount(torch.tensor(labels), minlength=classes)
    return len(labels) / (classes * counts.clamp(min=1))


class ImageLoader:
    """Reads images when they are needed; crops and flips the training images."""

    def __init__(
        self,
        data: Split,
        preprocessing: Preprocessing,
        config: Config,
        *,
        rank: int = 0,
        world: int = 1,
        pin: bool = False,
    ) -> None:
        """Fix the order of rows; nothing is read yet. With `pin`, batches lie in memory that a GPU copies from."""
        if min(config.batch_size, len(data.train)) < world:
            raise InputError(f"{world} processes cannot share batches of {config.batch_size} rows")
        self.data, self.preprocessing, self.config, self.pin = data, preprocessing, config, pin
        self.order = Order(
            count=len(data.train),
            batch=config.batch_size,
            accumulate=config.accumulate,
            seed=config.seed,
            rank=rank,
            world=world,
            weights=balancing([data.images.labels[index] for index in data.train]) if config.balance else (),
        )
        self.augmentation = Augmentation(
            preprocessing=preprocessing,
            seed=config.seed,
            min_crop=config.min_crop,
            flip=not data.images.upright,
            crop=config.augments,
            randaugment=config.randaugment,
        )

    @property
    def steps(self) -> int:
        """Optimizer steps per epoch."""
        return self.order.steps

    def epoch(self, epoch: int, start: int = 0) -> Iterator[list[Batch]]:
        """Yield the batches of each optimizer step of an epoch (counted from 0), from step `start` on."""
        plan = self.order.epoch(epoch, start)
        drawn = epoch if self.augmentation.changes else None
        loaded = self._load(self.data.train, [rows for step in plan for rows, _ in step], drawn)
        for step in plan:
            yield [
                Batch(inputs=inputs, labels=labels, fraction=fraction)
                for _, fraction in step
                for inputs, labels in [next(loaded)]
            ]

    def validation(self) -> Iterator[Batch]:
        """Yield this process's validation batches, without augmentation."""
        return self._unchanged(self.data.val, self.order.held_out(len(self.data.val)))

    def plain(self, indices: Sequence[int]) -> Iterator[Batch]:
        """Yield the images at the given indices in order, without augmentation, all of them on each process."""
        return self._unchanged(indices, self.order.in_sequence(len(indices)))

    def _unchanged(self, indices: Sequence[int], plan: list[list[int]]) -> Iterator[Batch]:
        for rows, (inputs, labels) in zip(plan, self._load(indices, plan, None), strict=True):
            yield Batch(inputs=inputs, labels=labels, fraction=len(rows) / len(indices))

    def _load(
        self, indices: Sequence[int], plan: list[list[int]], epoch: int | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Read the rows of a plan, in worker processes if there are any."""
        # A generator of its own: the loader would draw from the global one.
        loader: Any = DataLoader(
            _Rows(self, indices, epoch),
            batch_sampler=plan,
            num_workers=self.config.workers,
            collate_fn=_stack,
            pin_memory=self.pin,  # a GPU then need not wait for the copy
            generator=torch.Generator(),
        )
        for bad, inputs, labels in loader:
            if bad:
                raise InputError(bad, hint="it was readable before training; the checkpoint is kept")
            yield inputs, labels

    def row(self, index: int, epoch: int | None) -> Tensor:
        """Return the (C, H, W) input of an image, with an epoch's crop or without a crop."""
        image = self.data.images.read(index)
        return self.preprocessing(image)[0] if epoch is None else self.augmentation(image, epoch, index)


class _Rows(Dataset[tuple[str, Tensor, int]]):
    def __init__(self, loader: ImageLoader, indices: Sequence[int], epoch: int | None) -> None:
        self.loader, self.indices, self.epoch = loader, indices, epoch

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, row: int) -> tuple[str, Tensor, int]:
        index = self.indices[row]
        try:
            return "", self.loader.row(index, self.epoch), self.loader.data.images.labels[index]
        except InputError as error:  # raised again in the main process; a worker would add its traceback
            return str(error), torch.empty(0), 0


def _stack(rows: list[tuple[str, Tensor, int]]) -> tuple[str, Tensor, Tensor]:
    bad = next((why for why, _, _ in rows if why), "")
    inputs = torch.empty(0) if bad else torch.stack([inputs for _, inputs, _ in rows])
    return bad, inputs, torch.tensor([label for _, _, label in rows])
