"""Noisy linear imputation: masked pixels become the mean of their neighbours (Rong et al. 2022, arXiv 2202.00449).

Each masked pixel is the weighted mean of its eight neighbours, masked or not: a sparse linear system with one unknown
per masked pixel. Its matrix is symmetric and, as long as one pixel is visible, positive definite.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array, diags_array
from scipy.sparse.linalg import splu
from torch import Tensor

from xaihub import Model
from xaihub.masking import Removal

DIRECT, DIAGONAL = 1 / 6, 1 / 12  # weights of the four nearest and of the four diagonal neighbours
SMALLEST = 16  # pixels of a block that is not split further; smaller blocks have the same fill-in in any order


class NoisyLinear(Removal):
    """Masked pixels are imputed from the visible pixels around them, plus noise.

    All masks share the same (C, H, W) noise, so that results do not depend on the batch size.
    """

    def __init__(self, noise: Tensor) -> None:
        """Store the noise, in the model's units and already scaled."""
        self.noise = noise

    def __call__(self, model: Model, image: Tensor, masks: Tensor) -> Tensor:
        """Return the (n, K) logits."""
        shown = masks[:, 0].cpu() > 0.5  # (n, H, W)
        pixels = image.cpu()
        filled = torch.stack([impute(pixels, row) for row in shown])
        filled += self.noise.cpu() * ~shown.unsqueeze(1)
        return model(filled.to(image))


def impute(image: Tensor, shown: Tensor) -> Tensor:
    """Fill the masked pixels of a (C, H, W) image; `shown` is (H, W) bool with at least one true."""
    height, width = shown.shape
    laplacian, order = _system(height, width)
    visible = shown.flatten().numpy()
    unknown, known = order[~visible[order]], np.flatnonzero(visible)
    if not len(unknown):
        return image.clone()
    flat = image.flatten(1).double().numpy().T  # (H * W, C)
    rows = laplacian[unknown]
    # No pivoting: the matrix is positive definite, and the elimination order keeps the factors sparse.
    factors = splu(rows[:, unknown].tocsc(), permc_spec="NATURAL", diag_pivot_thresh=0, options={"SymmetricMode": True})
    solution = factors.solve(-(rows[:, known] @ flat[known]))  # (unknowns, C)
    filled = image.flatten(1).clone()
    filled[:, torch.from_numpy(unknown)] = torch.from_numpy(solution.T).to(filled)
    return filled.view_as(image)


@lru_cache(maxsize=4)
def _system(height: int, width: int) -> tuple[csr_array, NDArray[np.int64]]:
    """Return the matrix of all pixels, and the order in which unknowns are eliminated."""
    index = np.arange(height * width).reshape(height, width)
    pairs = [
        (index[:, :-1], index[:, 1:], DIRECT),
        (index[:-1], index[1:], DIRECT),
        (index[:-1, :-1], index[1:, 1:], DIAGONAL),
        (index[:-1, 1:], index[1:, :-1], DIAGONAL),
    ]
    first = np.concatenate([a.ravel() for a, _, _ in pairs])
    second = np.concatenate([b.ravel() for _, b, _ in pairs])
    weight = np.concatenate([np.full(a.size, w) for a, _, w in pairs])
    both = np.concatenate([first, second]), np.concatenate([second, first])
    weights = csr_array((np.concatenate([weight, weight]), both), shape=(index.size, index.size))
    # At the border, fewer neighbours share the total weight.
    return (diags_array(weights.sum(axis=1)) - weights).tocsr(), np.array(_dissect(index), dtype=np.int64)


def _dissect(block: NDArray[np.int64]) -> list[int]:
    """Order the pixels of a block by nested dissection: its halves first, the separating line last (George 1973).

    A factorisation then has O(n log n) entries; SuperLU's general orders take 2 to 3 times as long.
    """
    if block.size <= SMALLEST:
        return [int(pixel) for pixel in block.ravel()]
    if block.shape[0] < block.shape[1]:
        block = block.T
    middle = block.shape[0] // 2
    return _dissect(block[:middle]) + _dissect(block[middle + 1 :]) + [int(pixel) for pixel in block[middle]]
