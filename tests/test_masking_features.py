"""Features: windows and segments against loops, their texts, and superpixels."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from xaihub import Model, ParameterError, Preprocessing
from xaihub.masking import Segments, Windows, make_features


def _model(height: int, width: int, channels: int = 3) -> Model:
    plain = Preprocessing(spatial=(), size=(channels, height, width), mean=(0.5,) * channels, std=(0.25,) * channels)
    return Model(nn.Flatten(), name="flat", preprocessing=plain)


def _starts(length: int, window: int, stride: int) -> list[int]:
    starts = [start for start in range(length) if start % stride == 0 and start + window <= length]
    return sorted({*starts, length - window})


@pytest.mark.parametrize(
    ("size", "window", "stride"), [((9, 12), 4, 3), ((10, 7), 3, 3), ((8, 8), 8, 2), ((11, 11), 2, 4)]
)
def test_windows_equal_loops(size: tuple[int, int], window: int, stride: int) -> None:
    features = Windows(size, window=window, stride=stride)
    places = [(top, left) for top in _starts(size[0], window, stride) for left in _starts(size[1], window, stride)]
    assert features.count == len(places)
    coalitions = (torch.rand(6, len(places)) < 0.6).float()
    values = torch.randn(len(places))
    masks = torch.ones(6, 1, *size)
    for row, coalition in enumerate(coalitions):
        for shown, (top, left) in zip(coalition.tolist(), places, strict=True):
            keep = torch.full((window, window), shown)
            block = masks[row, 0, top : top + window, left : left + window]
            block.copy_(torch.minimum(block, keep))
    total, covers = torch.zeros(size), torch.zeros(size)
    for value, (top, left) in zip(values, places, strict=True):
        total[top : top + window, left : left + window] += value
        covers[top : top + window, left : left + window] += 1
    assert torch.equal(features.masks(coalitions), masks)
    assert torch.equal(features.masks(coalitions.bool()), masks)
    assert torch.allclose(features.spread(values), total / covers.clamp(min=1), atol=1e-6)
    assert features.spread(values.expand(2, 3, -1)).shape == (2, 3, *size)


def test_a_window_larger_than_the_input_is_refused() -> None:
    with pytest.raises(ParameterError, match="window of 9 pixels"):
        Windows((8, 12), window=9, stride=1)


def test_segments_equal_loops() -> None:
    labels = torch.tensor([[0, 0, 2], [1, 2, 2]])
    features = Segments(labels)
    coalitions, values = torch.rand(4, 3), torch.randn(5, 3)
    masks, spread = torch.empty(4, 1, 2, 3), torch.empty(5, 2, 3)
    for y in range(2):
        for x in range(3):
            masks[:, 0, y, x] = coalitions[:, labels[y, x]]
            spread[:, y, x] = values[:, labels[y, x]]
    assert (features.count, features.size, features.sizes.tolist()) == (3, (2, 3), [2, 1, 3])
    assert torch.equal(features.masks(coalitions), masks)
    assert torch.equal(features.spread(values), spread)
    assert features.masks(coalitions > 0.5).dtype == torch.bool


@pytest.mark.parametrize(
    "labels", [torch.tensor([[0, 2]]), torch.tensor([0, 1]), torch.tensor([[0.0, 1.0]]), torch.tensor([[-1, 0]])]
)
def test_labels_that_are_no_partition_are_refused(labels: Tensor) -> None:
    with pytest.raises(ParameterError, match="without gaps"):
        Segments(labels)


def test_masks_made_in_inference_mode_do_not_forbid_gradients_later() -> None:
    features = Segments(torch.tensor([[0, 1]]))
    with torch.inference_mode():
        features.masks(torch.ones(1, 2))
    coalitions = torch.ones(1, 2, requires_grad=True)
    features.masks(coalitions).sum().backward()
    assert coalitions.grad is not None


@pytest.mark.parametrize(
    ("text", "size", "count"),
    [
        ("grid:3", (9, 9), 9),
        ("grid:4", (9, 14), 16),
        ("grid:1", (5, 5), 1),
        ("patches:4", (8, 12), 6),
        ("patches:4", (9, 13), 12),
        ("pixels", (3, 5), 15),
    ],
)
def test_grids_and_patches_are_made_from_a_text(text: str, size: tuple[int, int], count: int) -> None:
    features = make_features(text, _model(*size), torch.zeros(3, *size))
    assert features.count == count
    assert features.size == size


def test_grid_cells_are_equal_where_they_can_be_and_read_row_by_row() -> None:
    features = make_features("grid:2", _model(4, 6), torch.zeros(3, 4, 6))
    expected = torch.tensor([[0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1, 1], [2, 2, 2, 3, 3, 3], [2, 2, 2, 3, 3, 3]])
    assert torch.equal(features.spread(torch.arange(4)), expected)


@pytest.mark.parametrize(
    "text",
    ["", "grid", "grid:", "grid:0", "grid:-1", "grid:x", "grid:2.5", "grid:²", "hexagons:3", "pixels:", "pixels:3"],
)
def test_a_text_that_means_nothing_is_refused_with_the_known_ones(text: str) -> None:
    with pytest.raises(ParameterError, match="features cannot be") as error:
        make_features(text, _model(8, 8), torch.zeros(3, 8, 8))
    assert "superpixels:50" in error.value.hint


@pytest.mark.parametrize("text", ["grid:9", "patches:9"])
def test_cells_that_do_not_fit_the_input_are_refused(text: str) -> None:
    with pytest.raises(ParameterError, match="than the input, 8x12"):
        make_features(text, _model(8, 12), torch.zeros(3, 8, 12))


@pytest.mark.parametrize("channels", [1, 3])
def test_superpixels_follow_the_image_and_have_no_gaps(channels: int) -> None:
    image = torch.full((channels, 40, 40), -2.0)
    image[:, :, 20:] = 2.0
    features = make_features("superpixels:8", _model(40, 40, channels), image)
    labels = features.spread(torch.arange(features.count))
    assert labels.unique().tolist() == list(range(features.count))
    assert 4 <= features.count <= 12
    assert not set(labels[:, :20].flatten().tolist()) & set(labels[:, 20:].flatten().tolist())
