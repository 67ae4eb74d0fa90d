"""The paper's tabular data sets that installed packages contain, split and standardised as in its code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Table:
    """One data set and the paper's network and settings for it.

    Attributes:
        name: The name users type.
        load: Returns (n, d) inputs and (n,) targets.
        depth: Number of hidden layers.
        width: Units per hidden layer.
        c_fidelity: ExpO-Fidelity as a fraction of the loss at the start.
        c_line: ExpO-1D-Fidelity as a fraction of the loss at the start.
        binary: The target is a class, 0 or 1; otherwise a number.
    """

    name: str
    load: Callable[[], tuple[np.ndarray, np.ndarray]]
    depth: int
    width: int
    c_fidelity: float
    c_line: float
    binary: bool = False


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
    whole = np.isfinite(X).all(1) & np.isfinite(y)
    X, y = X[whole].astype(np.float64), y[whole].astype(np.float64)
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
    return np.asarray(X[:, :7], dtype=float), np.asarray(y, dtype=float)  # the eighth column would be the car's name


def _housing() -> tuple[np.ndarray, np.ndarray]:
    from mlxtend.data import boston_housing_data

    X, y = boston_housing_data()
    return np.delete(np.asarray(X, dtype=float), [1, 3], axis=1), np.asarray(y, dtype=float)  # without ZN and CHAS


def _diabetes() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_diabetes

    X, y = load_diabetes(return_X_y=True)
    return np.asarray(X), np.asarray(y)


def _breast_cancer() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_breast_cancer

    X, y = load_breast_cancer(return_X_y=True)
    return np.asarray(X), 1.0 - np.asarray(y)  # 1 is malignant


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
