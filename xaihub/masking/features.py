"""Features: groups of pixels that are kept or masked together."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property

import torch
from torch import Tensor

from xaihub.errors import ParameterError
from xaihub.models.model import Model


class Features(ABC):
    """d players over an (H, W) input. A coalition is a row of d values in [0, 1]; 1 keeps a feature, 0 masks it."""

    count: int
    size: tuple[int, int]

    @abstractmethod
    def masks(self, coalitions: Tensor) -> Tensor:
        """Convert (n, d) coalitions to (n, 1, H, W) masks in [0, 1]."""

    @abstractmethod
    def spread(self, values: Tensor) -> Tensor:
        """Spread (..., d) values of features over pixels: (..., H, W)."""


class Segments(Features):
    """A partition of the pixels, given as an (H, W) map of the labels 0..d-1."""

    def __init__(self, labels: Tensor) -> None:
        """Store the labels; each of 0..d-1 must occur.

        Raises:
            ParameterError: The labels are not a partition.
        """
        present = labels.cpu().unique()
        if labels.ndim != 2 or labels.is_floating_point() or present.tolist() != list(range(len(present))):
            raise ParameterError("segments must be an (H, W) map of the labels 0, 1, ..., d-1 without gaps")
        self.labels = labels.long()
        self._flat = self.labels.flatten()
        self.count = len(present)
        self.size = (labels.shape[0], labels.shape[1])

    def masks(self, coalitions: Tensor) -> Tensor:
        """Convert (n, d) coalitions to (n, 1, H, W) masks."""
        # index_select is eight times as fast as plain indexing.
        return coalitions.index_select(1, self._flat_on(coalitions.device)).view(-1, 1, *self.size)

    def spread(self, values: Tensor) -> Tensor:
        """Give every pixel the value of its segment."""
        return values[..., self.labels.to(values.device)]

    @cached_property
    def sizes(self) -> Tensor:
        """(d,) number of pixels per segment."""
        return torch.bincount(self.labels.flatten(), minlength=self.count)

    def _flat_on(self, device: torch.device) -> Tensor:
        if self._flat.device != device:
            with torch.inference_mode(False):  # it is cached, and a later caller may need gradients
                self._flat = self._flat.to(device)
        return self._flat


class Windows(Features):
    """Overlapping square windows at a regular stride; the last ones are aligned with the far edges."""

    def __init__(self, size: tuple[int, int], *, window: int, stride: int) -> None:
        """Place windows of `window` pixels every `stride` pixels over an (H, W) input.

        Raises:
            ParameterError: The window is larger than the input.
        """
        if window > min(size):
            raise ParameterError(f"a window of {window} pixels is larger than the input, {size[0]}x{size[1]}")
        self.size, self.window = size, window
        self.rows, self.columns = (_starts(length, window, stride) for length in size)
        self.count = len(self.rows) * len(self.columns)

    def masks(self, coalitions: Tensor) -> Tensor:
        """Convert (n, d) coalitions to (n, 1, H, W) masks of the union of the absent windows."""
        shown = coalitions if coalitions.is_floating_point() else coalitions.float()
        hidden = (1 - shown).unflatten(1, (len(self.rows), len(self.columns)))
        covered = torch.einsum("nrc,rh,cw->nhw", hidden, *self._inside(hidden))
        return 1 - covered.clamp_(max=1).unsqueeze(1)

    def spread(self, values: Tensor) -> Tensor:
        """Give every pixel the mean over the windows that cover it."""
        grid = values.unflatten(-1, (len(self.rows), len(self.columns)))
        rows, columns = self._inside(values)
        total = torch.einsum("...rc,rh,cw->...hw", grid, rows, columns)
        covers = rows.sum(0).unsqueeze(1) * columns.sum(0).unsqueeze(0)
        return total / covers.clamp(min=1)  # a stride wider than the window leaves pixels at 0

    def _inside(self, like: Tensor) -> list[Tensor]:
        """Return (r, H) and (c, W) tensors, 1 where a row or column of pixels is inside a row or column of windows."""
        offsets = [
            torch.arange(length) - torch.tensor(starts).unsqueeze(1)
            for starts, length in zip((self.rows, self.columns), self.size, strict=True)
        ]
        return [((offset >= 0) & (offset < self.window)).to(like) for offset in offsets]


def _starts(length: int, window: int, stride: int) -> list[int]:
    starts = list(range(0, length - window + 1, stride))
    return starts if starts[-1] == length - window else [*starts, length - window]


def make_features(kind: str, model: Model, image: Tensor) -> Segments:
    """Create features from a short text.

    `grid:7` is 7 x 7 cells, `patches:16` squares of 16 pixels, `superpixels:50` about 50 SLIC segments of the
    image (Achanta et al. 2012), `pixels` one feature per pixel.

    Args:
        kind: The text.
        model: The model, whose preprocessing defines the units of `image`.
        image: (C, H, W) input, which superpixels segment.

    Raises:
        ParameterError: The text is not valid, or does not fit the input size.
    """
    name, _, number = kind.partition(":")
    height, width = image.shape[-2:]
    if kind == "pixels":
        return Segments(torch.arange(height * width).view(height, width))
    if not number.isdecimal() or int(number) < 1 or name not in ("grid", "patches", "superpixels"):
        raise ParameterError(f"features cannot be {kind!r}", hint="use grid:7, patches:16, superpixels:50 or pixels")
    count, grid = int(number), name == "grid"
    if name == "superpixels":
        return _superpixels(model, image, count)
    if count > min(height, width):
        what = f"a grid of {count} cells per side is finer" if grid else f"a patch of {count} pixels is larger"
        raise ParameterError(f"{what} than the input, {height}x{width}")
    rows, columns = (torch.arange(n) * count // n if grid else torch.arange(n) // count for n in (height, width))
    return Segments(rows.unsqueeze(1) * (int(columns[-1]) + 1) + columns)


def _superpixels(model: Model, image: Tensor, count: int) -> Segments:
    from skimage.segmentation import slic

    pixels = model.preprocessing.denormalise(image.cpu()).clamp(0, 1).permute(1, 2, 0)
    # SLIC converts colours to Lab (0 to 100) but not grey values, which its compactness term would outweigh.
    pixels = pixels.expand(-1, -1, 3) if pixels.shape[2] == 1 else pixels
    labels = slic(pixels.numpy(), n_segments=count, compactness=10, start_label=0, channel_axis=2)
    return Segments(torch.from_numpy(labels).unique(return_inverse=True)[1].view(labels.shape))
