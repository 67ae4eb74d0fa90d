"""A network that votes patch by patch: its class scores are the sum of its patches' Shapley values.

Fan, Yang, Ma 2025, "Enhancing Interpretability for Vision Models via Shapley Value Optimization" (arXiv 2512.14354).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from xaihub import Layout, ParameterError
from xaihub_shapley.cells import as_cells, check_attention, find_grid, look, strip

__all__ = ["Answers", "PatchHead", "ShapleyVision"]

EXACT = 1e-5  # largest difference of logits, relative to their size, that counts as rounding
FRESH = "the classifier does not read the mean of the cells, so the patch head starts afresh"


@dataclass(frozen=True)
class Answers:
    """What one pass over images and their coalitions returns.

    Attributes:
        phi: (B, N, K) votes of the whole images.
        values: (B, M, K) values of the coalitions.
        empty: (K,) value of the empty coalition; zero by construction for the visible vote.
    """

    phi: Tensor
    values: Tensor
    empty: Tensor


class PatchHead(nn.Module):
    """One map from a cell's features to class scores, shared by all cells and divided by their number."""

    def __init__(self, width: int, num_classes: int, *, kind: Literal["linear", "mlp"] = "linear") -> None:
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(width, width), nn.GELU()) if kind == "mlp" else nn.Identity()
        self.linear = nn.Linear(width, num_classes)

    def forward(self, cells: Tensor) -> Tensor:
        """Return the (B, N, K) votes of (B, N, L) features."""
        votes: Tensor = self.linear(self.hidden(cells))
        return votes / cells.shape[1]


class ShapleyVision(nn.Module):
    """A backbone whose cells vote: `forward(x) = phi(x).sum(1)`.

    Attributes:
        backbone: The network without its classifier; parts that only served the classifier are taken out.
        norm: The normalisation between pooling and classifier, now applied to each cell.
        head: The patch head.
        grid: (rows, columns) of cells; each stands for its share of the image.
        num_classes: K.
        warm_start: How the head began: "exact" (the class scores are those of the network that was given),
            "approximate" (its classifier's weights, but pooling and normalisation do not commute), or "fresh" (random).
        start: The same in a sentence.
    """

    cell_of_pixel: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int | None = None,
        *,
        size: tuple[int, int, int] = (3, 224, 224),
        mask: Literal["pixel", "attention"] = "pixel",
        value: Literal["visible", "full"] = "visible",
        head: Literal["linear", "mlp"] = "linear",
    ) -> None:
        """Take a timm network apart. It is changed; give a copy to keep it.

        Args:
            backbone: A timm network with `forward_features`.
            num_classes: K; by default as many as the network has.
            size: (channels, height, width) of one input.
            mask: Absent patches become 0 after normalisation ("pixel"), or may not be attended to ("attention").
            value: Of a masked image all patches vote ("full"), or only those present ("visible").
            head: One linear layer, or a hidden layer before it.

        Raises:
            ModelError: The network's features are no grid over the image, or cannot be masked in the wanted way.
            ParameterError: The options contradict each other.
        """
        super().__init__()
        for name, given, choices in (
            ("mask", mask, ("pixel", "attention")),
            ("value", value, ("visible", "full")),
            ("head", head, ("linear", "mlp")),
        ):
            if given not in choices:
                raise ParameterError(f"{name} cannot be {given!r}", hint=" or ".join(choices))
        if mask == "attention" and value == "full":
            raise ParameterError(
                "mask=attention needs value=visible: an absent token still sees itself, so its vote would count",
                hint="use mask=pixel with value=full",
            )
        self.size, self.mask, self.value_of = size, mask, value
        mode = backbone.training
        backbone.eval()
        noise = torch.randn(1, *size, generator=torch.Generator().manual_seed(0)).to(next(backbone.parameters()))
        features, outputs, called = look(backbone, noise)
        self._cells = find_grid(backbone, features)
        self.grid = self._cells.grid
        self.num_classes = num_classes or outputs
        if mask == "attention":
            check_attention(backbone, self._cells)
        self.head = PatchHead(self._cells.width, self.num_classes, kind=head)
        self.norm: nn.Module = nn.Identity()
        copied = head == "linear" and self._copy_classifier(backbone)
        self.warm_start, self.start = self._judge(backbone, features) if copied else ("fresh", FRESH)
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
        """Return (B, K) class scores; with (B, N) coalitions their values; with (B, M, N) coalitions `Answers`.

        Everything goes through here, so that what wraps or counts the module sees every pass.
        """
        if shown is None:
            return self.phi(x).sum(1)
        if shown.ndim == 2:
            return self._value(self._votes(*self._masked(x, shown)), shown)
        return self._answers(x, shown)

    def phi(self, x: Tensor, shown: Tensor | None = None) -> Tensor:
        """Return the (B, N, K) votes of (B, C, H, W) images, masked if (B, N) coalitions are given."""
        return self._votes(x, None) if shown is None else self._votes(*self._masked(x, shown))

    def value(self, x: Tensor, shown: Tensor) -> Tensor:
        """Return the (B, K) values of (B, N) coalitions."""
        values: Tensor = self(x, shown)
        return values

    def hide(self, x: Tensor, shown: Tensor) -> Tensor:
        """Set the pixels of absent patches to 0, the mean of the data after normalisation."""
        if x.shape[-2:] != self.cell_of_pixel.shape:
            raise ParameterError(
                f"images of {x.shape[-2]}x{x.shape[-1]} pixels have another grid of patches than"
                f" {self.size[1]}x{self.size[2]}"
            )
        pixels = shown.to(x).index_select(1, self.cell_of_pixel.flatten()).view(-1, 1, *self.cell_of_pixel.shape)
        return torch.where(pixels > 0, x, 0)

    def paint(self, votes: Tensor) -> Tensor:
        """Spread (..., N) votes evenly over the pixels of their patches: (..., H, W) with the same sums."""
        flat = self.cell_of_pixel.flatten()
        area = torch.bincount(flat, minlength=self.cells).to(votes)
        pixels: Tensor = (votes / area).index_select(-1, flat)
        return pixels.reshape(*votes.shape[:-1], *self.cell_of_pixel.shape)

    def _answers(self, x: Tensor, shown: Tensor) -> Answers:
        """Ask about images, coalitions and, for the full vote, the empty one in a single pass.

        Batch normalisation must see whole and masked images together, or each would have statistics of its own.
        """
        rows, count = shown.shape[:2]
        masked, attend = self._masked(x.repeat_interleave(count, 0), shown.flatten(0, 1))
        full = self.value_of == "full"
        inputs = torch.cat([x, masked] + [torch.zeros_like(x[:1])] * full)
        if attend is not None:
            attend = torch.cat([attend.new_ones(rows, *attend.shape[1:]), attend])
        votes = self._votes(inputs, attend)
        hidden = votes[rows : rows + rows * count]
        values = self._value(hidden, shown.flatten(0, 1)).view(rows, count, -1)
        return Answers(votes[:rows], values, votes[-1].sum(0) if full else values.new_zeros(values.shape[-1]))

    def _value(self, votes: Tensor, shown: Tensor) -> Tensor:
        return votes.sum(1) if self.value_of == "full" else (votes * shown.to(votes).unsqueeze(-1)).sum(1)

    def _masked(self, x: Tensor, shown: Tensor) -> tuple[Tensor, Tensor | None]:
        if self.mask == "pixel":
            return self.hide(x, shown), None
        shown = shown.to(x.device) > 0
        # Without a token to attend to the softmax has no answer; nobody votes in an empty coalition anyway.
        shown = shown | ~shown.any(1, keepdim=True)
        prefix = shown.new_ones(len(shown), self._cells.prefix)
        return x, torch.cat([prefix, shown], 1)[:, None, None]

    def _votes(self, x: Tensor, attend: Tensor | None) -> Tensor:
        backbone: Any = self.backbone
        features = backbone.forward_features(x) if attend is None else backbone.forward_features(x, attn_mask=attend)
        votes: Tensor = self.head(self._normalised(as_cells(features, self._cells)))
        return votes

    def _normalised(self, cells: Tensor) -> Tensor:
        if self._cells.layout is Layout.NTC:
            return self.norm(cells)  # type: ignore[no-any-return]
        # The norm of a feature map takes its channels second, so each cell becomes a map of one.
        rows, count, width = cells.shape
        if isinstance(self.norm, nn.Identity):
            return cells
        return self.norm(cells.reshape(rows * count, width, 1, 1)).reshape(rows, count, width)  # type: ignore[no-any-return]

    def _copy_classifier(self, backbone: Any) -> bool:
        """Start the head as the classifier, if that reads the mean of the cells; tell whether it did."""
        classifier = backbone.get_classifier() if hasattr(backbone, "get_classifier") else None
        averaged = self._cells.layout is not Layout.NTC or getattr(backbone, "global_pool", "") == "avg"
        weight = getattr(classifier, "weight", None)
        if not averaged or not isinstance(classifier, (nn.Linear, nn.Conv2d)) or not isinstance(weight, Tensor):
            return False
        if weight.numel() != self.num_classes * self._cells.width or weight.shape[0] != self.num_classes:
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

    def _judge(self, backbone: Any, features: Tensor) -> tuple[str, str]:
        """Compare the patch head with the classifier, on features in which no two cells are alike."""
        noise = torch.randn(features.shape, generator=torch.Generator().manual_seed(1)).to(features)
        with torch.no_grad():
            plain = backbone.forward_head(noise)
            gap = (self.head(self._normalised(as_cells(noise, self._cells))).sum(1) - plain).abs().max()
            share = float(gap / (plain - self.head.linear.bias).abs().max().clamp(min=1e-12))
        if share <= EXACT:
            return "exact", "the classifier reads the mean of the cells, so the class scores are its own"
        return "approximate", f"the classifier's weights on each cell; its class scores differ by {share:.1%} on noise"
