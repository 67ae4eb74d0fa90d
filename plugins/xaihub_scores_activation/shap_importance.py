"""SHAP's global importance, from the shap library: the mean |SHAP value| over rows and classes."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from xaihub import ParameterError

with warnings.catch_warnings():
    # shap defines its colours with functions that matplotlib has deprecated; nothing is plotted here.
    warnings.filterwarnings("ignore", message=r"The set_\w+ function will be deprecated")
    import shap


Algorithm = Literal["permutation", "kernel"]
TABLE_BYTES = 256 * 2**20  # shap holds every masked copy of a row in one table


def shap_importance(
    predict: Callable[[Tensor], Tensor],
    background: Tensor,
    rows: Tensor,
    *,
    algorithm: Algorithm = "permutation",
    permutations: int = 10,
    seed: int = 0,
) -> Tensor:
    """Return the (d,) mean of |SHAP value| over (n, d) rows and the outputs, by shap's explainer of that name.

    `predict` maps (n, d) to (n, K) without a graph; masked features take their values in (b, d) background rows. In
    each of `permutations` orders per row, the features are walked in both directions.

    Raises:
        ParameterError: The kernel explainer would need more than 4 GiB of memory.
    """

    def outputs(table: Any) -> Any:
        return predict(torch.from_numpy(np.ascontiguousarray(table)).to(rows.dtype)).numpy()

    width = rows.shape[1]
    absent, explained = background.double().numpy(), rows.double().numpy()
    if algorithm == "kernel":
        need = (2 * width + 2048) * len(absent) * width * 8
        if need > 16 * TABLE_BYTES:
            raise ParameterError(
                f"shap's kernel explainer would need {need / 2**30:.0f} GiB for {width} features and {len(absent)}"
                " background rows",
                hint="use fewer background rows, or algorithm=permutation",
            )
        values = shap.KernelExplainer(outputs, absent, seed=seed).shap_values(explained, silent=True)
        return torch.from_numpy(np.abs(values).mean(axis=(0, 2)))
    # SHAP values average over background rows, which can therefore be split into parts whose tables fit into memory.
    part = max(1, TABLE_BYTES // ((2 * width + 1) * width * 8))
    total = np.zeros((len(explained), width, outputs(explained[:1]).shape[1]))
    for start in range(0, len(absent), part):
        some = absent[start : start + part]
        masker = shap.maskers.Independent(some, max_samples=len(some))
        explainer = shap.PermutationExplainer(outputs, masker, seed=seed)
        found = explainer(explained, max_evals=permutations * (2 * width + 1), silent=True)
        total += found.values * (len(some) / len(absent))
    return torch.from_numpy(np.abs(total).mean(axis=(0, 2)))
