"""Pictures of explanations."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from xaihub import ClassScore, Explanation, Geometry, Picture
from xaihub.errors import OutputError
from xaihub.rendering import grid, heat, overlay, terminal_lines

SCORE = ClassScore(index=1, name="cat", logit=2.0, probability=0.7)


def explanation(values: torch.Tensor, *, size: tuple[int, int] = (400, 300)) -> Explanation:
    """Return an explanation of a grey picture, seen whole."""
    side = values.shape[-1]
    picture = Picture(image=Image.new("RGB", size, (90, 90, 90)), name="grey", source="", sha256="")
    return Explanation(
        values=values,
        target=SCORE,
        predicted=SCORE,
        metadata={"explainer": "test", "model": "toy", "forwards": 3.0, "seconds": 0.1, "warnings": []},
    ).with_picture(picture, Geometry(original=size, scaled=(side, side), offset=(0, 0), crop=(side, side)))


def test_a_map_with_negative_values_is_centred_on_zero() -> None:
    values = torch.zeros(1, 8, 8)
    values[0, 0, 0], values[0, 7, 7] = 4.0, -1.0
    scale = heat(explanation(values))
    assert scale.signed
    assert scale.low == -scale.high
    colours = scale.colours()
    middle = colours[150, 200]
    assert np.ptp(middle) < 0.02  # zero is a neutral grey
    assert colours[2, 2, 0] > colours[2, 2, 2]  # red speaks for
    assert colours[-2, -2, 2] > colours[-2, -2, 0]  # blue speaks against


def test_a_map_without_negative_values_starts_at_its_least() -> None:
    scale = heat(explanation(torch.linspace(0.4, 0.5, 64).view(1, 8, 8)))
    assert not scale.signed
    assert scale.low == pytest.approx(0.4, abs=1e-3)
    assert float(scale.strength.min()) == pytest.approx(0, abs=1e-3)


def test_the_overlay_has_the_pictures_own_pixels_above_its_legend() -> None:
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
    assert pixels[150, 5].mean() > 150  # of a picture of 90
    assert np.ptp(pixels[150, 5]) == 0
    assert np.ptp(pixels[150, 200]) > 20


def test_constant_maps_and_tiny_pictures_can_be_drawn() -> None:
    for values in (torch.zeros(1, 4, 4), torch.full((1, 4, 4), 3.0), torch.full((3, 4, 4), -3.0)):
        assert overlay(explanation(values, size=(7, 5))).width >= 360


def test_the_grid_has_one_column_more_than_explainers() -> None:
    item = explanation(torch.rand(1, 8, 8))
    assert grid([[item, item]]).width > 3 * 300
    assert grid([[item, item], [item, item]]).height > grid([[item, item]]).height


def test_a_notebook_gets_a_png() -> None:
    shown = explanation(torch.rand(1, 8, 8))._repr_png_()
    assert Image.open(io.BytesIO(shown)).format == "PNG"


def test_plot_returns_a_figure_with_picture_map_and_colour_bar() -> None:
    assert len(explanation(torch.rand(1, 8, 8)).plot().axes) == 3


def test_without_a_picture_drawing_is_refused() -> None:
    with pytest.raises(OutputError, match="no picture"):
        overlay(replace(explanation(torch.rand(1, 8, 8)), picture=None, geometry=None))


def test_a_terminal_line_is_two_rows_of_pixels() -> None:
    lines = list(terminal_lines(Image.new("RGB", (40, 20), "red"), 10))
    assert [len(line) for line in lines] == [10, 10]
    assert lines[0][0] == ((255, 0, 0), (255, 0, 0))
