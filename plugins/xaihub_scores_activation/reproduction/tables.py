"""The tables of the reconstruction: synthetic ones with known relevant columns, and small real ones.

The paper's own data sets are unknown; every choice here is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from sklearn import datasets
from sklearn.model_selection import train_test_split
from torch import Tensor

from xaihub import ParameterError
from xaihub.errors import did_you_mean

ROWS = 1000
FLIPPED = 0.01  # fraction of labels that make_classification draws at random
PARITY_ROWS = 800, 1000  # training and test rows
SYNTHETIC = ("classification_10", "classification_16", "friedman_10", "friedman_16", "parity_10", "parity_16")
REAL = ("breast_cancer", "wine", "digits")


@dataclass(frozen=True, kw_only=True)
class Table:
    """One data set, split and scaled with the statistics of the training rows."""

    name: str
    train_x: Tensor  # (n, d) float32
    train_y: Tensor  # (n,) class indices
    test_x: Tensor  # (m, d) float32
    test_y: Tensor  # (m,) class indices
    relevant: Tensor | None = None  # (d,) booleans, or None where unknown

    @property
    def columns(self) -> int:
        """The number of columns, d."""
        return int(self.train_x.shape[1])

    @property
    def classes(self) -> int:
        """The number of classes."""
        return int(torch.cat([self.train_y, self.test_y]).max()) + 1

    def with_shuffled_labels(self, seed: int) -> Table:
        """Return the table with shuffled training labels and true test labels."""
        order = torch.randperm(len(self.train_y), generator=torch.Generator().manual_seed(seed))
        return replace(self, name=f"{self.name}, labels shuffled", train_y=self.train_y[order])


def make_table(name: str, seed: int = 0) -> Table:
    """Make a table of `SYNTHETIC` or `REAL`; the seed fixes the split, and the rows of synthetic tables.

    Raises:
        ParameterError: The name is unknown.
    """
    known = (*SYNTHETIC, *REAL)
    if name not in known:
        raise ParameterError(
            f"no table is named {name!r}", hint=did_you_mean(name, known) or f"known: {', '.join(known)}"
        )
    if name in REAL:
        found = getattr(datasets, f"load_{name}")()
        if name == "digits":  # divided by the range of its pixels
            return _table(name, _split(found.data / 16, found.target, seed))
        return _table(name, _scaled(*_split(found.data, found.target, seed)))
    family, _, width = name.partition("_")
    columns = int(width)
    if family == "parity":  # the sign of the product of three columns, none of which predicts anything alone
        x = np.random.default_rng(seed).standard_normal((sum(PARITY_ROWS), columns))
        y, rows = x[:, :3].prod(axis=1) > 0, PARITY_ROWS[0]
        return _table(name, (x[:rows], x[rows:], y[:rows], y[rows:]), relevant=3)
    if family == "classification":
        # Without shuffling, the first five columns are the relevant ones.
        x, y = datasets.make_classification(
            ROWS, columns, n_informative=5, n_redundant=0, flip_y=FLIPPED, shuffle=False, random_state=seed
        )
    else:
        x, target = datasets.make_friedman1(ROWS, columns, noise=0.0, random_state=seed)
        y = target > np.median(target)
    return _table(name, _scaled(*_split(x, y, seed)), relevant=5)


def _split(x: Any, y: Any, seed: int) -> Sequence[Any]:
    """Return training rows, test rows, training labels and test labels."""
    parts: list[Any] = train_test_split(x, y, test_size=0.2, stratify=y, random_state=seed)
    return parts


def _scaled(train_x: Any, test_x: Any, train_y: Any, test_y: Any) -> Sequence[Any]:
    """Standardise the columns, since a column on a larger scale needs a smaller weight."""
    mean, spread = train_x.mean(axis=0), train_x.std(axis=0)
    return (train_x - mean) / spread, (test_x - mean) / spread, train_y, test_y


def _table(name: str, parts: Sequence[Any], relevant: int | None = None) -> Table:
    train_x, test_x, train_y, test_y = map(torch.from_numpy, parts)
    return Table(
        name=name,
        train_x=train_x.float(),
        train_y=train_y.long(),
        test_x=test_x.float(),
        test_y=test_y.long(),
        relevant=None if relevant is None else torch.arange(train_x.shape[1]) < relevant,
    )
