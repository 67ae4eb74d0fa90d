"""A network that scores each patch: its class scores are the sum of its patch scores.

Fan, Yang, Ma 2025, "Enhancing Interpretability for Vision Models via Shapley Value Optimization" (arXiv 2512.14354),
who call the sum a soft vote of the patches.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from xaihub import Layout, ParameterError
from xaihub_shapley.patches import check_attention, find_grid, probe, strip

EXACT = 1e-5  # largest relative difference of logits that counts as rounding


class PatchScores(NamedTuple):
    """The result of one forward pass over images and their coalitions."""

    phi: Tensor  # (B, N, K) patch scores of the unmasked images
    values: Tensor  # (B, M, K) values of the coalitions
    empty: Tensor  # (K,) value of the empty coalition; zero by construction for value="visible"


class PatchHead(nn.Module):
    """One linear layer from a patch's features to class scores, shared by all N patches and divided by N."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        """Return the (B, N, K) patch scores of (B, N, L) features."""
        scores: Tensor = self.linear(features)
        return scores / features.shape[1]


class ShapleyVision(nn.Module):
    """A backbone that scores its patches: `forward(x) = phi(x).sum(1)`.

    Attributes:
        backbone: The network without its classifier and the parts that only served it.
        norm: The normalisation between pooling and classifier, now applied to each patch.
        head: The patch head.
        grid: (rows, columns) of patches.
        warm_start: How the head starts: "exact" (the class scores are those of the given network), "approximate" (its
            classifier's weights, but pooling and normalisation do not commute), or "fresh" (random weights).
    """

    cell_of_pixel: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        *,
        size: tuple[int, int, int] = (3, 224, 224),
        mask: Literal["pixel", "attention"] = "pixel",
        value: Literal["visible", "full"] = "visible",
    ) -> None:
        """Take over a timm network, which is changed in place.

        Args:
            backbone: A timm network with `forward_features`.
            size: (channels, height, width) of one input.
            mask: Masked patches become 0 after normalisation ("pixel") or are kept out of attention ("attention").
            value: The value of a coalition sums all patch scores ("full") or those of visible patches ("visible").

        Raises:
            ModelError: The network's features do not form a grid over the image, or cannot be masked in this way.
            ParameterError: The options contradict each other.
        """
        super().__init__()
        if mask == "attention" and value == "full":
            raise ParameterError(
                "mask=attention needs value=visible: a masked token still sees itself, so its score would count",
                hint="use mask=pixel with value=full",
            )
        self.size, self.mask, self.value_of = size, mask, value
        mode = backbone.training
        backbone.eval()
        noise = torch.randn(1, *size, generator=torch.Generator().manual_seed(0)).to(next(backbone.parameters()))
        features, classes, called = probe(backbone, noise)
        self._patches = find_grid(backbone, features)
        self.grid = self._patches.grid
        if mask == "attention":
            check_attention(backbone, self._patches)
        self.head = PatchHead(self._patches.width, classes)
        self.norm: nn.Module = nn.Identity()
        self.warm_start = self._compare(backbone, features) if self._copy_classifier(backbone) else "fresh"
        strip(backbone, noise, features, called)
        self.backbone = backbone
        rows, columns = (torch.arange(side) * count // side for side, count in zip(size[1:], self.grid, strict=True))
        self.register_buffer("cell_of_pixel", rows.unsqueeze(1) * self.grid[1] + columns, persistent=False)
        self.train(mode)

    @property
    def cells(self) -> int:
        """N, the number of patches."""
        return self.grid[0] * self.grid[1]

    def forward(self, x: Tensor, shown: Tensor | None = None) -> Any:
        """Return (B, K) class scores; for (B, N) coalitions their values; for (B, M, N) coalitions `PatchScores`.

        Every forward pass goes through here, so that wrappers and counters of the module see it.
        """
        if shown is None:
            return self.phi(x).sum(1)
        if shown.ndim == 2:
            return self._value(self.phi(x, shown), shown)
        return self._phi_and_values(x, shown)

    def phi(self, x: Tensor, shown: Tensor | None = None) -> Tensor:
        """Return the (B, N, K) patch scores of (B, C, H, W) images, masked if (B, N) coalitions are given."""
        return self._patch_scores(x, None) if shown is None else self._patch_scores(*self._masked(x, shown))

    def mask_pixels(self, x: Tensor, shown: Tensor) -> Tensor:
        """Set the pixels of masked patches to 0, the mean of the data after normalisation."""
        if x.shape[-2:] != self.cell_of_pixel.shape:
            raise ParameterError(
                f"images of {x.shape[-2]}x{x.shape[-1]} pixels have another grid of patches than"
                f" {self.size[1]}x{self.size[2]}"
            )
        pixels = shown.to(x).index_select(1, self.cell_of_pixel.flatten()).view(-1, 1, *self.cell_of_pixel.shape)
        return torch.where(pixels > 0, x, 0)

    def spread(self, scores: Tensor) -> Tensor:
        """Spread (..., N) patch scores evenly over the pixels of their patches: (..., H, W) with the same sums."""
        flat = self.cell_of_pixel.flatten()
        area = torch.bincount(flat, minlength=self.cells).to(scores)
        pixels: Tensor = (scores / area).index_select(-1, flat)
        return pixels.reshape(*scores.shape[:-1], *self.cell_of_pixel.shape)

    def _phi_and_values(self, x: Tensor, shown: Tensor) -> PatchScores:
        """Evaluate images, coalitions and, for value="full", the empty coalition in a single forward pass.

        Batch normalisation must see whole and masked images together, or each would have its own statistics.
        """
        rows, count = shown.shape[:2]
        masked, attend = self._masked(x.repeat_interleave(count, 0), shown.flatten(0, 1))
        full = self.value_of == "full"
        inputs = torch.cat([x, masked] + [torch.zeros_like(x[:1])] * full)
        if attend is not None:
            attend = torch.cat([attend.new_ones(rows, *attend.shape[1:]), attend])
        scores = self._patch_scores(inputs, attend)
        values = self._value(scores[rows : rows + rows * count], shown.flatten(0, 1)).view(rows, count, -1)
        return PatchScores(scores[:rows], values, scores[-1].sum(0) if full else values.new_zeros(values.shape[-1]))

    def _value(self, scores: Tensor, shown: Tensor) -> Tensor:
        return scores.sum(1) if self.value_of == "full" else (scores * shown.to(scores).unsqueeze(-1)).sum(1)

    def _masked(self, x: Tensor, shown: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return inputs and attention mask."""
        if self.mask == "pixel":
            return self.mask_pixels(x, shown), None
        shown = shown.to(x.device) > 0
        # Without a token to attend to, softmax gives NaN; an empty coalition sums no scores anyway.
        shown = shown | ~shown.any(1, keepdim=True)
        prefix = shown.new_ones(len(shown), self._patches.prefix)
        return x, torch.cat([prefix, shown], 1)[:, None, None]

    def _patch_scores(self, x: Tensor, attend: Tensor | None) -> Tensor:
        backbone: Any = self.backbone
        features = backbone.forward_features(x) if attend is None else backbone.forward_features(x, attn_mask=attend)
        scores: Tensor = self.head(self._normalised(self._patches.flatten(features)))
        return scores

    def _normalised(self, features: Tensor) -> Tensor:
        if self._patches.layout is Layout.NTC or isinstance(self.norm, nn.Identity):
            return self.norm(features)  # type: ignore[no-any-return]
        # The norm of a feature map expects channels second, so each patch becomes a 1 x 1 map.
        return self.norm(features.flatten(0, 1)[..., None, None]).reshape(features.shape)  # type: ignore[no-any-return]

    def _copy_classifier(self, backbone: Any) -> bool:
        """Start the head as the classifier, if that reads the mean of the patches; return whether it did."""
        classifier = backbone.get_classifier() if hasattr(backbone, "get_classifier") else None
        averaged = self._patches.layout is not Layout.NTC or getattr(backbone, "global_pool", "") == "avg"
        weight = getattr(classifier, "weight", None)
        if not averaged or not isinstance(classifier, (nn.Linear, nn.Conv2d)) or not isinstance(weight, Tensor):
            return False
        if weight.flatten(1).shape != self.head.linear.weight.shape:
            return False
        with torch.no_grad():
            self.head.linear.weight.copy_(weight.flatten(1))
            self.head.linear.bias.zero_()
            if classifier.bias is not None:
                self.head.linear.bias.copy_(classifier.bias)
        found = getattr(backbone, "fc_norm", None) or getattr(getattr(backbone, "head", None), "norm", None)
        if isinstance(found, nn.Module):
            self.norm = found
        return True

    def _compare(self, backbone: Any, features: Tensor) -> Literal["exact", "approximate"]:
        """Compare patch head and classifier on random features, in which no two patches are alike."""
        noise = torch.randn(features.shape, generator=torch.Generator().manual_seed(1)).to(features)
        with torch.no_grad():
            expected = backbone.forward_head(noise)
            gap = (self.head(self._normalised(self._patches.flatten(noise))).sum(1) - expected).abs().max()
            relative = float(gap / (expected - self.head.linear.bias).abs().max().clamp(min=1e-12))
        return "exact" if relative <= EXACT else "approximate"
