"""Scaling of attribution maps for drawing: sign, clipping, smoothing, colours. Values of a map are never changed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from xaihub.errors import ParameterError, did_you_mean

# Equal steps in value look like equal steps in colour: inferno is perceptually uniform, coolwarm (Moreland 2009) was
# designed for diverging data; its red supports the target, its blue opposes it.
SEQUENTIAL = "inferno"
DIVERGING = "coolwarm"
CLIPPED_SIGNED, CLIPPED = 99.0, 99.8  # percentiles at which colour scales end
# Neighbouring pixels of gradient maps correlate by 0.25 to 0.45 (saliency, integrated gradients, SmoothGrad on
# EfficientNet-Lite0), those of maps made of cells, masks or layers by more than 0.95.
PIXELWISE = 0.6
SIGMA = 1 / 37  # standard deviation of the smoothing per side length: 6 pixels of 224
ALPHA = 0.75  # opacity of the strongest colours, under which the image stays visible
FAR = 0.1  # a scale that starts above this fraction of its end does not start near zero


class Drawing(TypedDict, total=False):
    """How a map is drawn; its values are never changed.

    Attributes:
        smooth: Smooth the map for display; None smooths maps that are pixelwise.
        colormap: The name of a matplotlib colour map; None is inferno, and coolwarm for signed maps.
        alpha: Opacity of the strongest colours over the image, in [0, 1].
    """

    smooth: bool | None
    colormap: str | None
    alpha: float


def check_drawing(drawing: Drawing) -> None:
    """Check the name of a colour map and the opacity.

    Raises:
        ParameterError: There is no such colour map, or the opacity is not in [0, 1].
    """
    name, alpha = drawing.get("colormap"), drawing.get("alpha", ALPHA)
    if name is not None and name not in colormaps:
        hint = did_you_mean(name, list(colormaps)) or "matplotlib's names, such as viridis, magma or RdBu_r"
        raise ParameterError(f"there is no colour map {name!r}", hint=hint)
    if not 0 <= alpha <= 1:
        raise ParameterError(f"alpha is {alpha:g}, not in [0, 1]", hint="0 shows the image alone, 1 hides it")


@dataclass(frozen=True, kw_only=True)
class Heat:
    """A map scaled for drawing.

    Attributes:
        strength: (H, W) in [0, 1] for a sequential map, in [-1, 1] for a signed one; NaN outside the model's input.
        signed: Some values oppose the target.
        low: The value at the start of the colour scale.
        high: The value at its end.
        clipped: The percentile of magnitude at which the scale ends; None if it ends at the largest value.
        sigma: Standard deviation in pixels of the model's input by which the map was smoothed; 0 if it was not.
        chosen: The name of a colour map to use instead of the usual one.
    """

    strength: NDArray[np.float32]
    signed: bool
    low: float
    high: float
    clipped: float | None = None
    sigma: float = 0.0
    chosen: str | None = None

    def colours(self) -> NDArray[np.float32]:
        """Return (H, W, 3) colours in [0, 1]."""
        known = np.nan_to_num(self.strength)
        position = (known + 1) / 2 if self.signed else known
        return np.asarray(colormaps[self.colormap](position)[..., :3], dtype=np.float32)

    @property
    def colormap(self) -> str:
        """The name of the colour map."""
        return self.chosen or (DIVERGING if self.signed else SEQUENTIAL)

    @property
    def cover(self) -> NDArray[np.float32]:
        """(H, W) opacity in [0, 1] before alpha: 0 where the scale of the map starts, and outside the model's input."""
        strength = np.abs(np.nan_to_num(self.strength))
        return np.sqrt(strength) if self.signed else strength

    @property
    def ends(self) -> tuple[str, str]:
        """What the two ends of the colour scale mean, with their values."""
        if self.signed:
            return f"opposes {self.low:.3g}", f"supports {self.high:.3g}"
        return f"least {self.low:.3g}" + (", not 0" if self.low > FAR * self.high else ""), f"most {self.high:.3g}"

    @property
    def remarks(self) -> str:
        """What was done for display: clipping and smoothing; empty if nothing."""
        done = [f"clipped at percentile {self.clipped:g}"] if self.clipped else []
        return ", ".join([*done, f"smoothed for display by {self.sigma:g} px"] if self.sigma else done)


def pixelwise(values: NDArray[np.float32]) -> bool:
    """Return whether an (H, W) map consists of single pixels that barely resemble their neighbours (our choice)."""
    spread = values.astype(np.float64) - values.mean()
    energy = 2 * (spread**2).sum()
    alike = (spread[:, 1:] * spread[:, :-1]).sum() + (spread[1:] * spread[:-1]).sum()
    return bool(alike < PIXELWISE * energy)


def smoothed(values: NDArray[np.float32], smooth: bool | None) -> tuple[NDArray[np.float32], float]:
    """Return an (H, W) map smoothed by a Gaussian, and its standard deviation in pixels (0 if it was left alone).

    The sum of the map is kept, so each point shows the net attribution of its surroundings.

    Args:
        values: The map at the size of the model's input.
        smooth: None smooths maps that are pixelwise, True any map, False none.
    """
    sigma = float(round(max(values.shape) * SIGMA))
    if sigma < 1 or not (pixelwise(values) if smooth is None else smooth):
        return values, 0.0
    return gaussian_filter(values, sigma, mode="reflect"), sigma


def scaled(values: NDArray[np.float32], sigma: float = 0.0) -> Heat:
    """Scale an (H, W) map for drawing; NaN marks what is outside the model's input.

    Signed maps are scaled symmetrically around zero, unsigned maps from their smallest value. The scale ends at the
    99th percentile of magnitude (signed) or the 99.8th (unsigned), so that single pixels do not wash out the rest.
    """
    known = values[np.isfinite(values)]
    top, least = float(np.abs(known).max(initial=0.0)), float(known.min(initial=np.inf))
    signed = least < -1e-6 * top
    percentile = CLIPPED_SIGNED if signed else CLIPPED
    high = float(np.percentile(np.abs(known), percentile)) if known.size else 1.0
    if signed:
        high = high or top
        low, strength = -high, np.clip(values / high, -1, 1)
    else:
        low = least if known.size else 0.0
        high = high if high > low else max(top, low)
        strength = np.clip((values - low) / ((high - low) or 1.0), 0, 1)
    clipped = percentile if high < top else None
    return Heat(strength=strength, signed=signed, low=low, high=high, clipped=clipped, sigma=sigma)
