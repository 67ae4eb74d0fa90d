"""Explainers of tabular models by local linear models: LIME as the package `lime` computes it, and MAPLE."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from xaihub_expo.reproduction.quality import Linear

CHUNK = 64  # points whose samples are in memory at the same time


def weighted_ridge(X: Tensor, Y: Tensor, weights: Tensor, *, alpha: float) -> Linear:
    """Minimise sum_i w_i (y_i - x_i b - a)^2 + alpha ||b||^2, for b problems at once; the intercept is not penalised.

    Regressors are (b, n, d), responses (b, n, k), and weights (b, n), non-negative.
    """
    X, Y, w = X.double(), Y.double(), weights.double().unsqueeze(2)
    total = w.sum(1, keepdim=True)
    middle, level = (w * X).sum(1, keepdim=True) / total, (w * Y).sum(1, keepdim=True) / total
    weighted = (w * (X - middle)).mT
    ridge = alpha * torch.eye(X.shape[2], dtype=torch.float64)
    coefficients = torch.linalg.solve(weighted @ (X - middle) + ridge, weighted @ (Y - level))
    return Linear(coefficients, (level - middle @ coefficients).squeeze(1))


class Lime:
    """LIME for tables in regression mode without discretisation, with the defaults of `lime` 0.2.

    Samples come from N(mean, sd) of the training data (not from around x), with x itself as the first. Their weights
    are sqrt(exp(-dist^2 / w^2)) with w = 0.75 sqrt(d) on standardised features; the fit is ridge regression (alpha = 1)
    with intercept. Coefficients are in the units of the features.
    """

    def __init__(self, f: Callable[[Tensor], Tensor], data: Tensor, *, samples: int = 1000) -> None:
        """Explain `f`, which maps (n, d) to (n, k), with samples distributed like the (n, d) training data."""
        self._f, self._samples = f, samples
        self._mean = data.double().mean(0)
        self._sd = data.double().std(0, correction=0)

    def __call__(self, points: Tensor, *, seed: int) -> Linear:
        """Explain (b, d) points; each has its own samples, fixed by the seed."""
        generator = torch.Generator().manual_seed(seed)
        parts = [self._explain(part, generator) for part in points.split(CHUNK)]
        return Linear(torch.cat([p.coefficients for p in parts]), torch.cat([p.intercepts for p in parts]))

    def _explain(self, points: Tensor, generator: torch.Generator) -> Linear:
        d = points.shape[1]
        here = (points.double() - self._mean) / self._sd
        samples = torch.randn(len(points), self._samples, d, generator=generator, dtype=torch.float64)
        samples[:, 0] = here
        with torch.no_grad():
            outputs = self._f((samples * self._sd + self._mean).flatten(0, 1).to(points.dtype))
        distance = (samples - here.unsqueeze(1)).square().sum(2)
        weights = (-distance / (0.75**2 * d)).exp().sqrt()
        fit = weighted_ridge(samples, outputs.unflatten(0, samples.shape[:2]), weights, alpha=1.0)
        coefficients = fit.coefficients / self._sd.unsqueeze(1)
        return Linear(coefficients, fit.intercepts - (self._mean.unsqueeze(1) * coefficients).sum(1))


class Maple:
    """MAPLE (Plumb, Molitor, Talwalkar 2018, arXiv 1807.02910): a forest determines which training points are near.

    One forest per output, fitted to the network's outputs: 200 trees, half of the features per split, at least 10
    samples per leaf. Features are ranked by the impurity at the roots they split; validation data decide how many are
    kept. Only the forest is random, so the seed of a call is ignored.
    """

    def __init__(self, f: Callable[[Tensor], Tensor], data: Tensor, validation: Tensor, *, seed: int = 0) -> None:
        """Explain `f`, which maps (n, d) to (n, k), by its outputs on training data; validation selects features."""
        with torch.no_grad():
            outputs, held_out = f(data).double(), f(validation).double()
        self._data = data.double()
        self._outputs = [
            _Forest(self._data, outputs[:, k], validation.double(), held_out[:, k], seed)
            for k in range(outputs.shape[1])
        ]

    def __call__(self, points: Tensor, *, seed: int) -> Linear:  # noqa: ARG002 - as in `LocalExplainer`
        """Explain (b, d) points."""
        fits = [forest.explain(points.double()) for forest in self._outputs]
        return Linear(torch.cat([f.coefficients for f in fits], 2), torch.cat([f.intercepts for f in fits], 1))


class _Forest:
    """MAPLE of one output."""

    def __init__(self, data: Tensor, outputs: Tensor, validation: Tensor, held_out: Tensor, seed: int) -> None:
        from sklearn.ensemble import RandomForestRegressor

        self._data, self._outputs = data, outputs
        forest = RandomForestRegressor(n_estimators=200, max_features=0.5, min_samples_leaf=10, random_state=seed)
        self._forest = forest.fit(data.numpy(), outputs.numpy())
        self._leaves = torch.from_numpy(self._forest.apply(data.numpy()))  # (n, trees)
        scores = np.zeros(data.shape[1])
        for tree in self._forest.estimators_:
            if tree.tree_.feature[0] >= 0:
                scores[tree.tree_.feature[0]] += tree.tree_.impurity[0]
        order = np.argsort(-scores, kind="stable")
        weights = self._weights(validation)
        best = np.inf
        for count in range(1, len(order) + 1):
            kept = torch.from_numpy(order[:count].copy())
            fit = self._fit(weights, kept)
            error = float((fit(validation.unsqueeze(1))[:, 0, 0] - held_out).square().mean())
            if error < best:
                best, self._kept = error, kept

    def explain(self, points: Tensor) -> Linear:
        return self._fit(self._weights(points), self._kept)

    def _weights(self, points: Tensor) -> Tensor:
        """Return (b, n) sums over trees of 1 / leaf size, for training points in the point's leaf."""
        same = torch.from_numpy(self._forest.apply(points.numpy())).unsqueeze(1) == self._leaves
        return (same / same.sum(1, keepdim=True)).sum(2)

    def _fit(self, weights: Tensor, kept: Tensor) -> Linear:
        X = self._data[:, kept].expand(len(weights), -1, -1)
        fit = weighted_ridge(X, self._outputs.view(1, -1, 1).expand(len(weights), -1, -1), weights, alpha=0.001)
        coefficients = torch.zeros(len(weights), self._data.shape[1], 1, dtype=torch.float64)
        coefficients[:, kept] = fit.coefficients
        return Linear(coefficients, fit.intercepts)
