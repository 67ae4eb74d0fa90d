"""Images of explanations."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from xaihub import (
    Attribution,
    ClassScore,
    Explainer,
    Explanation,
    Geometry,
    Model,
    PixelSet,
    Preprocessing,
    SourceImage,
)
from xaihub.errors import OutputError
from xaihub.explainers.rendering import grid, heat, overlay, sets_figure, terminal_lines

SCORE = ClassScore(index=1, name="cat", logit=2.0, probability=0.7)


def explanation(values: torch.Tensor, *, size: tuple[int, int] = (400, 300)) -> Explanation:
    """Return an explanation of a grey image, seen whole."""
    side = values.shape[-1]
    image = SourceImage(rgb=Image.new("RGB", size, (90, 90, 90)), name="grey", source="", sha256="")
    return Explanation(
        values=values,
        target=SCORE,
        predicted=SCORE,
        metadata={"explainer": "test", "model": "toy", "forward_passes": 3.0, "seconds": 0.1, "warnings": []},
    ).with_image(image, Geometry(original=size, scaled=(side, side), offset=(0, 0), crop=(side, side)))


def test_a_map_with_negative_values_is_centred_on_zero() -> None:
    values = torch.zeros(1, 8, 8)
    values[0, 0, 0], values[0, 7, 7] = 4.0, -1.0
    scale = heat(explanation(values))
    assert scale.signed
    assert scale.low == -scale.high
    colours = scale.colours()
    middle = colours[150, 200]
    assert np.ptp(middle) < 0.02  # zero is a neutral grey
    assert colours[2, 2, 0] > colours[2, 2, 2]  # red supports
    assert colours[-2, -2, 2] > colours[-2, -2, 0]  # blue opposes


def test_a_map_without_negative_values_starts_at_its_least() -> None:
    scale = heat(explanation(torch.linspace(0.4, 0.5, 64).view(1, 8, 8)))
    assert not scale.signed
    assert scale.low == pytest.approx(0.4, abs=1e-3)
    assert float(scale.strength.min()) == pytest.approx(0, abs=1e-3)


def test_a_scale_that_does_not_start_at_zero_says_so_and_colours_nothing_at_its_start() -> None:
    values = torch.full((1, 8, 8), 0.4)
    values[0, 3:5, 3:5] = 0.5
    scale = heat(explanation(values))
    assert scale.ends == ("least 0.4, not 0", "most 0.5")
    drawn = np.asarray(overlay(explanation(values)).crop((0, 0, 400, 300)), dtype=float)
    assert np.ptp(drawn[5, 60]) < 3  # grey: nothing is tinted where the map is least
    assert np.ptp(drawn[150, 200]) > 50
    assert heat(explanation(values - 0.4)).ends[0] == "least 0"


def speckled(seed: int = 0, side: int = 112) -> Explanation:
    draw = torch.Generator().manual_seed(seed)
    values = torch.randn(1, side, side, generator=draw)
    values[0, 40:60, 40:60] += 1.0
    return explanation(values)


def test_a_pixelwise_map_is_smoothed_for_display_and_its_values_stay() -> None:
    subject = speckled()
    before = subject.values.clone()
    shown, raw = heat(subject), heat(subject, smooth=False)
    assert (shown.sigma, raw.sigma) == (3.0, 0.0)
    assert "smoothed for display by 3 px" in shown.remarks
    assert "clipped at percentile 99" in shown.remarks
    evidence = (slice(110, 157), slice(147, 210))  # the block, in the original's geometry
    assert shown.strength[evidence].mean() > 3 * np.abs(shown.strength[:80]).mean()  # readable only when smoothed
    assert raw.strength[evidence].mean() < 2 * np.abs(raw.strength[:80]).mean()
    assert torch.equal(subject.values, before)


@pytest.mark.parametrize("cells", [7, 14, 28, 56])
def test_maps_made_of_cells_are_not_smoothed_unless_that_is_wanted(cells: int) -> None:
    draw = torch.Generator().manual_seed(cells)
    values = torch.randn(1, cells, cells, generator=draw).repeat_interleave(224 // cells, 1)
    subject = explanation(values.repeat_interleave(224 // cells, 2))
    assert heat(subject).sigma == 0
    assert heat(subject, smooth=True).sigma == 6


def test_long_notes_in_a_legend_take_up_to_three_lines() -> None:
    def height(words: int) -> int:
        subject = explanation(torch.rand(1, 8, 8))
        return overlay(replace(subject, metadata=subject.metadata | {"warnings": ["word " * words]})).height

    assert height(3) < height(20) < height(30) == height(300)


def test_the_overlay_has_the_images_own_pixels_above_its_legend() -> None:
    drawn = overlay(explanation(torch.rand(1, 8, 8)))
    assert drawn.width == 400
    assert drawn.height > 300
    assert np.asarray(drawn)[-3:].mean() > 250  # the legend is on white


def test_evidence_is_painted_where_it_is() -> None:
    values = torch.zeros(1, 8, 8)
    values[0, 1, 6] = 1.0
    pixels = np.asarray(overlay(explanation(values)).crop((0, 0, 400, 300)), dtype=float)
    row, column = divmod(int((pixels[..., 0] - pixels[..., 2]).argmax()), 400)
    assert row / 300 == pytest.approx(1.5 / 8, abs=0.07)
    assert column / 400 == pytest.approx(6.5 / 8, abs=0.07)


def test_what_the_model_never_saw_is_pale_and_has_no_colour() -> None:
    whole = explanation(torch.full((1, 8, 8), 1.0))
    assert whole.geometry is not None
    cropped = replace(whole, geometry=Geometry(original=(400, 300), scaled=(12, 8), offset=(2, 0), crop=(8, 8)))
    pixels = np.asarray(overlay(cropped), dtype=float)
    assert pixels[150, 5].mean() > 150  # of an image of 90
    assert np.ptp(pixels[150, 5]) == 0
    assert np.ptp(pixels[150, 200]) > 20


def test_constant_maps_and_tiny_images_can_be_drawn() -> None:
    for values in (torch.zeros(1, 4, 4), torch.full((1, 4, 4), 3.0), torch.full((3, 4, 4), -3.0)):
        assert overlay(explanation(values, size=(7, 5))).width >= 360


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (2, 3), (1, 1000), (1000, 1)])
def test_images_of_one_pixel_in_width_or_height_can_be_drawn(size: tuple[int, int]) -> None:
    geometry = Geometry(
        original=size, scaled=(size[0] * 8, size[1] * 8), offset=(size[0] * 4 - 4, size[1] * 4 - 4), crop=(8, 8)
    )
    made = explanation(torch.rand(1, 8, 8), size=size)
    mask = PixelSet(mask=torch.ones(8, 8, dtype=torch.bool), role="sufficient", score=0.5)
    for item in (made, replace(made, geometry=geometry)):
        drawn = overlay(item)
        assert drawn.width >= 360
        assert drawn.width * drawn.height < 5e6
        assert grid([[item]]).width > 600
        assert sets_figure(replace(item, sets=(mask,))) is not None
        assert item.plot().axes


def test_an_image_of_many_pixels_is_drawn_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.zeros(1, 8, 8)
    values[0, :, 4:] = 1.0
    whole = overlay(explanation(values, size=(800, 400)))
    monkeypatch.setattr("xaihub.explainers.rendering.LARGEST", 800 * 400 - 1)
    monkeypatch.setattr("xaihub.explainers.rendering.REDUCED", 400 * 200)
    small = overlay(explanation(values, size=(800, 400)))
    assert (whole.width, small.width) == (800, 400)
    colours = (
        np.asarray(small.crop((0, 0, 400, 200)), dtype=int),
        np.asarray(whole.resize((400, whole.height // 2)), dtype=int),
    )
    assert np.abs(colours[0] - colours[1][:200]).mean() < 3


def test_blending_rows_at_a_time_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    made = explanation(torch.rand(1, 8, 8) - 0.5)
    whole = np.asarray(overlay(made))
    monkeypatch.setattr("xaihub.explainers.rendering.BLOCK", 1000)
    assert np.array_equal(np.asarray(overlay(made)), whole)


def test_the_grid_has_one_column_more_than_explainers() -> None:
    item = explanation(torch.rand(1, 8, 8))
    assert grid([[item, item]]).width > 3 * 300
    assert grid([[item, item], [item, item]]).height > grid([[item, item]]).height


def test_a_notebook_gets_a_png() -> None:
    shown = explanation(torch.rand(1, 8, 8))._repr_png_()
    assert Image.open(io.BytesIO(shown)).format == "PNG"


def test_plot_returns_a_figure_with_image_map_and_colour_bar() -> None:
    assert len(explanation(torch.rand(1, 8, 8)).plot().axes) == 3


def test_without_an_image_drawing_is_refused() -> None:
    with pytest.raises(OutputError, match="no image"):
        overlay(replace(explanation(torch.rand(1, 8, 8)), image=None, geometry=None))


def test_a_terminal_line_is_two_rows_of_pixels() -> None:
    lines = list(terminal_lines(Image.new("RGB", (40, 20), "red"), 10))
    assert [len(line) for line in lines] == [10, 10]
    assert lines[0][0] == ((255, 0, 0), (255, 0, 0))


def with_sets(*corners: tuple[int, int], **facts: Any) -> Explanation:
    """Return an explanation of a red image with square sets of pixels, each 2 by 2 of 8 by 8."""
    made = explanation(torch.rand(1, 8, 8), size=(320, 160))
    sets = []
    for row, column in corners:
        mask = torch.zeros(8, 8, dtype=torch.bool)
        mask[row : row + 2, column : column + 2] = True
        sets.append(PixelSet(mask=mask, **facts))
    red = SourceImage(rgb=Image.new("RGB", (320, 160), (200, 30, 30)), name="red", source="", sha256="")
    return replace(made, sets=tuple(sets), image=red)


def test_sets_are_outlined_on_the_photo_and_shown_alone_side_by_side() -> None:
    drawn = sets_figure(with_sets((0, 0), (4, 4), (6, 0)))
    assert drawn is not None
    pixels = np.asarray(drawn).astype(int)
    panels = [pixels[12:162, left : left + 300] for left in (12, 324, 636, 948)]
    red = [np.abs(panel - (200, 30, 30)).max(2) < 12 for panel in panels]
    assert red[0].mean() > 0.7  # the photo, but for three outlines
    for panel, (row, column) in zip(red[1:], [(0, 0), (4, 4), (6, 0)], strict=True):
        assert panel.mean() == pytest.approx(4 / 64, abs=0.01)
        rows, columns = np.nonzero(panel)
        assert rows.mean() == pytest.approx((row + 1) / 8 * 150, abs=2)
        assert columns.mean() == pytest.approx((column + 1) / 8 * 300, abs=2)


def test_an_explanation_without_sets_has_no_such_image(tmp_path: Path) -> None:
    made = explanation(torch.rand(1, 8, 8))
    assert sets_figure(made) is None
    assert made.save_sets_png(tmp_path / "x.png") is None
    assert not list(tmp_path.iterdir())
    assert with_sets((1, 1)).save_sets_png(tmp_path / "x.png") == tmp_path / "x.png"
    with Image.open(tmp_path / "x.png") as drawn:
        assert drawn.width == 2 * 312 + 12


def test_the_area_score_and_verdict_of_a_set_stand_below_it() -> None:
    kept = {"score": 0.5, "whole": 0.9, "runner_up": 0.1}
    facts = ({}, kept, {**kept, "holds": True}, {**kept, "holds": False})
    drawn = [np.asarray(sets_figure(with_sets((1, 1), **one)))[170:, 324:] for one in facts]
    ink = [int((caption < 200).sum()) for caption in drawn]
    assert ink[0] < ink[1] == ink[2] < ink[3]


@pytest.mark.parametrize(
    "odd", [{"name": "mask"}, [{"area": "large"}], [3, None], {"mask": 1}, "text", 7, None], ids=repr
)
def test_no_details_of_a_method_can_break_a_figure(odd: Any, tmp_path: Path) -> None:
    class Odd(Explainer):
        def attribute(self, model: Model, inputs: torch.Tensor, target: Any) -> Attribution:
            mask = torch.zeros(len(inputs), 1, 8, 8, dtype=torch.uint8)
            return Attribution(values=inputs, details={"explanations": odd, "sets": odd}, extras={"mask": mask})

    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2))
    size = Preprocessing(spatial=(), size=(1, 8, 8), mean=(0.0,), std=(1.0,))
    found = Odd().explain(Model(module, name="toy", preprocessing=size), torch.rand(1, 1, 8, 8))[0]
    like = explanation(found.values)
    drawn = replace(found, image=like.image, geometry=like.geometry)
    assert drawn.save_sets_png(tmp_path / "x.png") is None
    assert drawn.save_png(tmp_path / "y.png").stat().st_size > 1000
