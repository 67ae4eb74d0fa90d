"""The data of the reconstruction: made tables whose relevant columns are known, and small real ones.

The paper's own data sets are unknown; every choice here is ours.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn import datasets
from sklearn.model_selection import train_test_split
from torch import Tensor

from xaihub import ParameterError
from xaihub.errors import did_you_mean

__all__ = ["MADE", "REAL", "Table", "make_table"]

ROWS = 1000
FLIPPED = 0.01  # share of labels that make_classification draws at random
PARITY_ROWS = (800, 1000)  # training and test rows
MADE = ("classification_10", "classification_16", "friedman_10", "friedman_16", "parity_10", "parity_16")
REAL = ("breast_cancer", "wine", "digits")
_Columns = NDArray[np.float64]
_Labels = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Table:
    """One data set, split and scaled with the training part's statistics.

    Attributes:
        name: What it is called.
        train_x: (n, d) float32.
        train_y: (n,) class indices.
        test_x: (m, d) float32.
        test_y: (m,) class indices.
        names: (d) column names.
        relevant: (d,) truth values, or None where nobody knows.
    """

    name: str
    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    names: tuple[str, ...]
    relevant: Tensor | None = None

    @property
    def columns(self) -> int:
        """D."""
        return int(self.train_x.shape[1])

    @property
    def classes(self) -> int:
        """The number of classes."""
        return int(torch.cat([self.train_y, self.test_y]).max()) + 1

    def permuted(self, order: Tensor) -> Table:
        """Return the table with its columns in another order."""
        return replace(
            self,
            train_x=self.train_x[:, order],
            test_x=self.test_x[:, order],
            names=tuple(self.names[index] for index in order.tolist()),
            relevant=None if self.relevant is None else self.relevant[order],
        )

    def with_shuffled_labels(self, seed: int) -> Table:
        """Return the table with training labels that say nothing; the test labels stay true."""
        order = torch.randperm(len(self.train_y), generator=torch.Generator().manual_seed(seed))
        return replace(self, name=f"{self.name}, labels shuffled", train_y=self.train_y[order])


def make_table(name: str, seed: int = 0) -> Table:
    """Make one of `MADE` or `REAL`; the seed fixes the rows of the former and the split of both.

    Raises:
        ParameterError: Nothing is called so.
    """
    known = (*MADE, *REAL)
    if name not in known:
        raise ParameterError(
            f"no table is named {name!r}", hint=did_you_mean(name, known) or f"known: {', '.join(known)}"
        )
    if name in REAL:
        found = getattr(datasets, f"load_{name}")()
        names = tuple(str(item) for item in found.feature_names)
        x, y = np.asarray(found.data, dtype=np.float64), np.asarray(found.target)
        if name == "digits":
            return _split(name, x / 16, y, names, seed, scale=False)  # the pixels' own range
        return _split(name, x, y, names, seed)
    family, _, width = name.partition("_")
    columns = int(width)
    names = tuple(f"x{index}" for index in range(columns))
    if family == "parity":
        return _parity(name, columns, names, seed)
    if family == "classification":
        # The first five columns are the relevant ones, since nothing is shuffled.
        x, y = datasets.make_classification(
            n_samples=ROWS,
            n_features=columns,
            n_informative=5,
            n_redundant=0,
            n_repeated=0,
            n_classes=2,
            shuffle=False,
            flip_y=FLIPPED,
            random_state=seed,
        )
    else:
        x, target = datasets.make_friedman1(ROWS, columns, noise=0.0, random_state=seed)
        y = (target > np.median(target)).astype(np.int64)
    return _split(name, x, y, names, seed, relevant=5)


def _parity(name: str, columns: int, names: tuple[str, ...], seed: int) -> Table:
    """The sign of the product of the first three columns: none of them says anything by itself."""
    x = np.random.default_rng(seed).standard_normal((sum(PARITY_ROWS), columns))
    y = (x[:, :3].prod(axis=1) > 0).astype(np.int64)
    return _table(name, x[: PARITY_ROWS[0]], y[: PARITY_ROWS[0]], x[PARITY_ROWS[0] :], y[PARITY_ROWS[0] :], names, 3)


def _split(
    name: str,
    x: _Columns,
    y: _Labels,
    names: tuple[str, ...],
    seed: int,
    *,
    scale: bool = True,
    relevant: int | None = None,
) -> Table:
    parts = train_test_split(x, y, test_size=0.2, stratify=y, random_state=seed)
    train_x, test_x, train_y, test_y = parts
    if scale:
        # Without scaling a weight says nothing: ten times larger columns need ten times smaller weights.
        mean, spread = train_x.mean(axis=0), train_x.std(axis=0)
        train_x, test_x = (train_x - mean) / spread, (test_x - mean) / spread
    return _table(name, train_x, train_y, test_x, test_y, names, relevant)


def _table(
    name: str,
    train_x: _Columns,
    train_y: _Labels,
    test_x: _Columns,
    test_y: _Labels,
    names: tuple[str, ...],
    relevant: int | None,
) -> Table:
    return Table(
        name=name,
        train_x=torch.from_numpy(train_x).float(),
        train_y=torch.from_numpy(train_y).long(),
        test_x=torch.from_numpy(test_x).float(),
        test_y=torch.from_numpy(test_y).long(),
        names=names,
        relevant=None if relevant is None else torch.arange(train_x.shape[1]) < relevant,
    )
