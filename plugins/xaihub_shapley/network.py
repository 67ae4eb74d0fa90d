"""A network that votes patch by patch: its class scores are the sum of its patches' Shapley values.

Fan, Yang, Ma 2025, "Enhancing Interpretability for Vision Models via Shapley Value Optimization" (arXiv 2512.14354).
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from xaihub import Layout, ModelError, ParameterError

__all__ = ["Answers", "PatchHead", "ShapleyVision"]

EXACT = 1e-5  # largest difference of logits, relative to their size, that counts as rounding
FRESH = "the classifier does not read the mean of the cells, so the patch head starts afresh"


@dataclass(frozen=True)
class Answers:
    """What one pass over pictures and their coalitions returns.

    Attributes:
        phi: (B, N, K) votes of the whole pictures.
        values: (B, M, K) values of the coalitions.
        empty: (K,) value of the empty coalition; zero by construction for the visible vote.
    """

    phi: Tensor
    values: Tensor
    empty: Tensor


@dataclass(frozen=True)
class _Grid:
    layout: Layout
    grid: tuple[int, int]
    prefix: int
    width: int


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
        grid: (rows, columns) of cells; each stands for its share of the picture.
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
            value: Of a masked picture all patches vote ("full"), or only those present ("visible").
            head: One linear layer, or a hidden layer before it.

        Raises:
            ModelError: The network's features are no grid over the picture, or cannot be masked in the wanted way.
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
        features, outputs, called = _look(backbone, noise)
        self._cells = _find_grid(backbone, features)
        self.grid = self._cells.grid
        self.num_classes = num_classes or outputs
        if mask == "attention":
            _check_attention(backbone, self._cells)
        self.head = PatchHead(self._cells.width, self.num_classes, kind=head)
        self.norm: nn.Module = nn.Identity()
        copied = head == "linear" and self._copy_classifier(backbone)
        self.warm_start, self.start = self._judge(backbone, features) if copied else ("fresh", FRESH)
        _strip(backbone, noise, features, called)
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
        """Return the (B, N, K) votes of (B, C, H, W) pictures, masked if (B, N) coalitions are given."""
        return self._votes(x, None) if shown is None else self._votes(*self._masked(x, shown))

    def value(self, x: Tensor, shown: Tensor) -> Tensor:
        """Return the (B, K) values of (B, N) coalitions."""
        values: Tensor = self(x, shown)
        return values

    def hide(self, x: Tensor, shown: Tensor) -> Tensor:
        """Set the pixels of absent patches to 0, the mean of the data after normalisation."""
        if x.shape[-2:] != self.cell_of_pixel.shape:
            raise ParameterError(
                f"pictures of {x.shape[-2]}x{x.shape[-1]} pixels have another grid of patches than"
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
        """Ask about pictures, coalitions and, for the full vote, the empty one in a single pass.

        Batch normalisation must see whole and masked pictures together, or each would have statistics of its own.
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
        votes: Tensor = self.head(self._normalised(_as_cells(features, self._cells)))
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
            gap = (self.head(self._normalised(_as_cells(noise, self._cells))).sum(1) - plain).abs().max()
            share = float(gap / (plain - self.head.linear.bias).abs().max().clamp(min=1e-12))
        if share <= EXACT:
            return "exact", "the classifier reads the mean of the cells, so the class scores are its own"
        return "approximate", f"the classifier's weights on each cell; its class scores differ by {share:.1%} on noise"


def _look(backbone: Any, noise: Tensor) -> tuple[Tensor, int, set[nn.Module]]:
    """Run the network once on noise: its features, K, and the modules that made the features."""
    who = type(backbone).__name__
    if not hasattr(backbone, "forward_features") or not hasattr(backbone, "forward_head"):
        raise ModelError(
            f"the cells of a {who} cannot be read: it has no forward_features", hint="use an architecture of timm"
        )
    called: set[nn.Module] = set()
    handles = [module.register_forward_pre_hook(lambda m, _: called.add(m)) for module in backbone.modules()]
    try:
        with torch.no_grad():
            features = backbone.forward_features(noise)
    finally:
        for handle in handles:
            handle.remove()
    with torch.no_grad():
        plain = backbone(noise)
    if not isinstance(plain, Tensor) or plain.ndim != 2 or plain.shape[1] < 1:
        raise ModelError(f"a {who} does not return one row of class scores a picture")
    return features, int(plain.shape[1]), called


def _find_grid(backbone: Any, features: Any) -> _Grid:
    who = type(backbone).__name__
    if not isinstance(features, Tensor) or features.ndim not in (3, 4):
        shape = tuple(features.shape) if isinstance(features, Tensor) else f"a {type(features).__name__}"
        raise ModelError(f"the features of a {who} are no grid over the picture: forward_features returns {shape}")
    if features.ndim == 4:
        last = str(getattr(backbone, "output_fmt", "NCHW")).endswith("NHWC")
        layout = Layout.NHWC if last else Layout.NCHW
        _, a, b, c = features.shape
        found = _Grid(layout, (a, b), 0, c) if last else _Grid(layout, (b, c), 0, a)
    else:
        prefix = int(getattr(backbone, "num_prefix_tokens", 0))
        grids = [getattr(getattr(backbone, name, None), "grid_size", None) for name in ("patch_embed", "stem")]
        grid = next(filter(None, grids), None)
        tokens = features.shape[1] - prefix
        if grid is None or grid[0] * grid[1] != tokens:
            raise ModelError(
                f"the {tokens} patch tokens of a {who} cannot be laid out over the picture: its patch embedding"
                f" {'names no grid' if grid is None else f'has {grid[0]}x{grid[1]} patches'}"
            )
        found = _Grid(Layout.NTC, (int(grid[0]), int(grid[1])), prefix, features.shape[2])
    if found.grid[0] * found.grid[1] < 2:
        raise ModelError(
            f"the features of a {who} are a single cell at this input size",
            hint="use a larger input or output_stride=8",
        )
    return found


def _as_cells(features: Tensor, grid: _Grid) -> Tensor:
    """Bring features to (B, N, L)."""
    if grid.layout is Layout.NCHW:
        return features.flatten(2).transpose(1, 2)
    return features.flatten(1, 2) if grid.layout is Layout.NHWC else features[:, grid.prefix :]


def _check_attention(backbone: Any, grid: _Grid) -> None:
    who = type(backbone).__name__
    if grid.layout is not Layout.NTC or "attn_mask" not in inspect.signature(backbone.forward_features).parameters:
        raise ModelError(f"a {who} has no attention mask over its patches", hint="use mask=pixel")
    projection = getattr(backbone.patch_embed, "proj", None)
    if not isinstance(projection, nn.Conv2d) or projection.kernel_size != projection.stride:
        raise ModelError(f"the patch embedding of a {who} mixes neighbouring patches", hint="use mask=pixel")


def _strip(backbone: Any, noise: Tensor, features: Tensor, called: set[nn.Module]) -> None:
    """Take out the parts with weights that the features do not need, and switch dropout off: the loss would fit noise.

    A part is not needed if the pass to the features neither called it nor one of its own. Relative positions and their
    like are read without a call, so a change of the features puts everything back.
    """
    for module in backbone.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        elif type(module).__name__ == "DropPath":
            module.drop_prob = 0.0
    unused = {
        name: child
        for name, child in backbone.named_children()
        if next(child.parameters(), None) is not None and not any(module in called for module in child.modules())
    }
    for name in unused:
        setattr(backbone, name, nn.Identity())
    try:
        with torch.no_grad():
            same = bool(torch.equal(backbone.forward_features(noise), features))
    except Exception:  # whatever the network raises that misses its part
        same = False
    for name, child in unused.items() if not same else ():
        setattr(backbone, name, child)
