"""Live maps: which positions of a feature map are active, and how they follow from the image's mask."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.functional import adaptive_avg_pool2d, conv2d

Pair = tuple[int, int]
# A fraction of exactly the threshold counts as active whatever the order of summation.
SLACK = 1e-6
NEIGHBOURS = [(y, x) for y in range(3) for x in range(3) if (y, x) != (1, 1)]


class Live:
    """One live map of a batch: (N, 1, h, w), 1 where a position is active, shared by all channels."""

    def __init__(self, mask: Tensor, valid: Tensor | None = None) -> None:
        self.mask = mask  # float32
        self.valid = valid  # (1, 1, h, w), 0 where padding was added; None if there is no padding
        self._shaped: dict[object, Tensor] = {}
        self._rings: list[tuple[Tensor, Tensor, Tensor]] = []
        self._reached: Tensor | None = None  # (N, h, w), what is active or filled after the rings so far

    @property
    def grid(self) -> Pair:
        """(rows, columns)."""
        return (self.mask.shape[2], self.mask.shape[3])

    def factor(self, like: Tensor, dims: tuple[int, ...]) -> Tensor:
        """Return 1 and 0 in a shape that broadcasts over `like`, whose axes `dims` are the positions."""
        return self._made("factor", like, dims, lambda: self.mask)

    def barrier(self, like: Tensor, dims: tuple[int, ...]) -> Tensor:
        """Return 0 and minus infinity in a shape that broadcasts over `like`."""
        return self._made(
            "barrier", like, dims, lambda: torch.zeros_like(self.mask).masked_fill(self.mask == 0, -torch.inf)
        )

    def share(self, ndim: int) -> Tensor:
        """Return the active fraction of each row, (N, 1, ...), at least that of one position."""
        share = self.mask.mean((2, 3)).clamp(min=1 / self.mask[0].numel())
        return share.view(-1, *[1] * (ndim - 1))

    def full(self) -> Tensor:
        """Return (N,), true for rows in which every position is active."""
        return self.mask.flatten(1).all(1)

    def rings(self, count: int) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Return per ring around the active positions its k positions, their 8 neighbours, and weights.

        Positions are numbered row by row through the whole batch; the weights of the known neighbours sum to 1.
        """
        rows, columns = self.grid
        while len(self._rings) < count:
            known = self.mask[:, 0] > 0 if self._reached is None else self._reached
            near = functional.pad(known, (1, 1, 1, 1))
            shifted = torch.stack([near[:, y : y + rows, x : x + columns] for y, x in NEIGHBOURS])  # (8, N, h, w)
            places = (shifted.any(0) & ~known).flatten().nonzero()[:, 0]
            weights = shifted.flatten(1)[:, places].T.float()
            offsets = torch.tensor([(y - 1) * columns + x - 1 for y, x in NEIGHBOURS], device=places.device)
            # A neighbour beyond the border has no number, and no weight.
            numbers = torch.where(weights > 0, places[:, None] + offsets, places[:, None])
            self._rings.append((places, numbers, weights / weights.sum(1, keepdim=True)))
            self._reached = known | shifted.any(0)
        return self._rings[:count]

    def _made(self, kind: str, like: Tensor, dims: tuple[int, ...], make: Callable[[], Tensor]) -> Tensor:
        key = (kind, like.dtype, like.ndim, dims)
        if key not in self._shaped:
            mask = make()[:, 0]
            if len(dims) == 1:
                mask = mask.flatten(1)
            elif dims[0] > dims[1]:
                mask = mask.transpose(1, 2)
            shape = [1] * like.ndim
            shape[0] = -1  # any number of images, also in a recording
            for axis, side in zip(sorted(dims), mask.shape[1:], strict=True):
                shape[axis] = side
            self._shaped[key] = mask.reshape(shape).to(like.dtype)
        return self._shaped[key]


class Window:
    """The windows of a convolution or pooling: kernel, stride, padding (left and top, right and bottom), dilation."""

    def __init__(self, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair = (1, 1)) -> None:
        self.kernel, self.stride, self.padding, self.dilation = kernel, stride, padding, dilation

    @property
    def is_place(self) -> bool:
        """Whether every output position reads only its own input position."""
        return self.kernel == self.stride == (1, 1) and self.padding == (0, 0)

    def sums(self, values: Tensor, grid: Pair) -> Tensor:
        """Return the (n, 1, *grid) sums of (n, 1, h, w) values over each window; outside counts as 0."""
        rows, columns = (
            (out - 1) * stride + (kernel - 1) * dilation + 1 - side - pad
            for out, stride, kernel, dilation, side, pad in zip(
                grid, self.stride, self.kernel, self.dilation, values.shape[2:], self.padding, strict=True
            )
        )
        top, left = self.padding
        padded = functional.pad(values, (left, columns, top, rows))  # negative: the last positions are not read
        ones = torch.ones(1, 1, *self.kernel, device=values.device)
        return conv2d(padded, ones, stride=self.stride, dilation=self.dilation)


def window_share(live: Live, window: Window, grid: Pair) -> Tensor:
    """Return (N, 1, *grid): active over valid positions in each window; 1 where it has only padding."""
    valid = torch.ones_like(live.mask[:1]) if live.valid is None else live.valid
    count = window.sums(valid, grid)
    return torch.where(count > 0, window.sums(live.mask * valid, grid) / count.clamp(min=1), torch.ones_like(count))


class Layerwise:
    """How the live map of an output follows from that of its input: by the active fraction of each window."""

    def __init__(self, kept: Tensor, threshold: float) -> None:
        """Store the (N, 1, H, W) mask of visible pixels, and the fraction that makes a position active."""
        self.threshold = threshold
        self.image = Live(kept)
        self._both: dict[tuple[int, int], tuple[Live, Live, Live]] = {}

    def window(self, live: Live, window: Window, grid: Pair) -> Live:
        """Return the live map after a convolution or pooling."""
        return Live(self.over(window_share(live, window, grid)))

    def resized(self, live: Live, grid: Pair) -> Live:
        """Return the live map after a resampling to another grid."""
        return Live(self.over(adaptive_avg_pool2d(live.mask, grid)))

    def both(self, one: Live, other: Live) -> Live:
        """Return the live map where two branches meet: a position is active if it is in both."""
        if one is other:
            return one
        key = (id(one), id(other))
        if key not in self._both:  # the maps are stored as well, so that no id is reused
            valid = one.valid if one.valid is not None else other.valid
            self._both[key] = (one, other, Live(one.mask * other.mask, valid))
        return self._both[key][2]

    def over(self, share: Tensor) -> Tensor:
        """Return 1 where a fraction reaches the threshold."""
        return (share >= self.threshold * (1 - SLACK)).float()


class Aligned(Layerwise):
    """By the visible fraction of each position's cell of the image, whatever lies between."""

    def __init__(self, kept: Tensor, threshold: float) -> None:
        super().__init__(kept, threshold)
        self._grids = {self.image.grid: self.image}

    def window(self, live: Live, window: Window, grid: Pair) -> Live:  # noqa: ARG002
        """Return the map of the output's grid."""
        return self.resized(live, grid)

    def resized(self, live: Live, grid: Pair) -> Live:  # noqa: ARG002
        """Return the map of the output's grid."""
        if grid not in self._grids:
            self._grids[grid] = Live(self.over(adaptive_avg_pool2d(self.image.mask, grid)))
        return self._grids[grid]


def from_neighbours(values: Tensor, live: Live, rings: int) -> Tensor:
    """Fill the inactive positions of (N, C, h, w), `rings` deep, with the mean of active or filled 3 x 3 neighbours."""
    channels = values.shape[1]
    # A channels-last copy, since few positions are filled, and individually.
    flat = values.permute(0, 2, 3, 1).clone(memory_format=torch.contiguous_format).view(-1, channels)
    flat *= live.factor(values, (-2, -1)).reshape(-1, 1)
    for places, near, weights in live.rings(rings):
        means = torch.einsum("kn,knc->kc", weights.to(flat), flat[near])
        flat[places] = means.to(flat)  # autocast may have changed the type
    filled = flat.view(-1, *values.shape[2:], channels).permute(0, 3, 1, 2)
    # Back to the memory layout of the input: convolutions round differently in another.
    return filled if values.is_contiguous(memory_format=torch.channels_last) else filled.contiguous()
