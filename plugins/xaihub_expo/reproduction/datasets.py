"""The paper's tabular data sets that installed packages contain, split and standardised as in its code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from sklearn import datasets
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Table:
    """One data set and the paper's network and settings for it."""

    name: str  # the name users type
    load: Callable[[], tuple[np.ndarray, np.ndarray]]  # returns (n, d) inputs and (n,) targets
    depth: int  # number of hidden layers
    width: int  # units per hidden layer
    c_fidelity: float  # ExpO-Fidelity as a fraction of the loss at the start
    c_line: float  # ExpO-1D-Fidelity as a fraction of the loss at the start
    binary: bool = False  # the target is a class, 0 or 1; otherwise a number


@dataclass(frozen=True, kw_only=True)
class Split:
    """Standardised training, validation and test data, float32: (n, d) inputs and (n, 1) targets each."""

    train: tuple[Tensor, Tensor]
    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    binary: bool


def make_split(table: Table, seed: int) -> Split:
    """Split at random into 50, 25 and 25 %; standardise inputs (and numeric targets) by the training data.

    Nearly constant columns are dropped. Unlike in the authors' code, the row index is not an input.
    """
    X, y = table.load()
    X, y = np.asarray(X, dtype=np.float64), np.asarray(y, dtype=np.float64)
    whole = np.isfinite(X).all(1) & np.isfinite(y)
    X, y = X[whole], y[whole]
    order = np.random.default_rng(seed).permutation(len(X))
    first, second = len(X) // 2, len(X) // 2 + len(X) // 4
    parts = [order[:first], order[first:second], order[second:]]
    kept = X[parts[0]].std(0) > 1e-10
    mean, sd = X[parts[0]][:, kept].mean(0), X[parts[0]][:, kept].std(0)
    shift, scale = (0.0, 1.0) if table.binary else (y[parts[0]].mean(), y[parts[0]].std())

    def part(rows: np.ndarray) -> tuple[Tensor, Tensor]:
        inputs = torch.from_numpy((X[rows][:, kept] - mean) / sd).float()
        return inputs, torch.from_numpy((y[rows] - shift) / scale).float().unsqueeze(1)

    train, validation, test = map(part, parts)
    return Split(train=train, validation=validation, test=test, binary=table.binary)


def _autompg() -> tuple[np.ndarray, np.ndarray]:
    from mlxtend.data import autompg_data

    X, y = autompg_data()
    return X[:, :7], y  # the eighth column would be the car's name


def _housing() -> tuple[np.ndarray, np.ndarray]:
    from mlxtend.data import boston_housing_data

    X, y = boston_housing_data()
    return np.delete(X, [1, 3], axis=1), y  # without ZN and CHAS


def _diabetes() -> tuple[np.ndarray, np.ndarray]:
    return datasets.load_diabetes(return_X_y=True)  # type: ignore[no-any-return]


def _breast_cancer() -> tuple[np.ndarray, np.ndarray]:
    X, y = datasets.load_breast_cancer(return_X_y=True)
    return X, 1 - y  # 1 is malignant


TABLES = {
    table.name: table
    for table in (
        Table(name="autompg", load=_autompg, depth=2, width=200, c_fidelity=0.05, c_line=0.005),
        Table(name="housing", load=_housing, depth=5, width=100, c_fidelity=0.005, c_line=0.005),
        Table(name="diabetes", load=_diabetes, depth=2, width=100, c_fidelity=0.05, c_line=0.05),
        Table(
            name="breast_cancer", load=_breast_cancer, depth=3, width=500, c_fidelity=0.001, c_line=0.001, binary=True
        ),
    )
}
