"""Pages about explanations: nothing in them becomes markup, names a folder, or is loaded from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from xaihub import ClassScore, Explanation, Geometry, GlobalExplanation, PixelSet, SourceImage
from xaihub.api.compare import Comparison
from xaihub.api.explain import Outcome
from xaihub.errors import ExplainerRefused, OutputError, ParameterError
from xaihub.explainers.page.document import document, packed, pathless
from xaihub.explainers.page.view import photo

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>"
SCORE = ClassScore(index=1, name="cat", logit=2.0, probability=0.7)


def explanation(name: str = "cat", **changes: Any) -> Explanation:
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    source = SourceImage(rgb=Image.fromarray(pixels), name=name, source=f"/home/jane doe/{name}.png", sha256="ab")
    metadata = {
        "explainer": "test", "model": "toy", "forward_passes": 3.0, "backward_passes": 0.0, "seconds": 0.1,
        "parameters": {"baseline": "image:/home/jane doe/grey.png"}, "versions": {"torch": "2.4"}, "seed": 0,
        "warnings": ["see '/home/jane doe/notes.txt'"], "layer": None, "weights_sha256": "cd",
    }  # fmt: skip
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[2:5, 2:5] = True
    made = Explanation(
        values=torch.linspace(0, 1, 64).view(1, 8, 8), target=SCORE, predicted=SCORE, metadata=metadata,
        sets=(PixelSet(mask=mask, score=0.4, whole=0.7),),
    ).with_image(source, Geometry(original=(40, 30), scaled=(8, 8), offset=(0, 0), crop=(8, 8)))  # fmt: skip
    return replace(made, **changes)


def blocks(page: str) -> list[Any]:
    return [json.loads(text) for text in re.findall(r'<script type="application/json" id="\S+">(.*?)</script>', page)]


def scripts(page: str) -> list[str]:
    return re.findall(r"<script>(.*?)</script>", page, re.DOTALL)


def elsewhere(page: str) -> list[str]:
    """Everything that a browser would load from another address."""
    return [
        found
        for found in re.findall(r"""(?:src|href|url|@import)\s*[=(]?\s*["']?([^"'\s)>]+)""", page)
        if re.match(r"(?:\w+:)?//", found) and "www.w3.org" not in found
    ]


def test_the_page_of_an_explanation_has_its_map_set_cost_and_command() -> None:
    page = explanation().html()
    (detail,) = [block for block in blocks(page) if "base" in block]
    (view,) = detail["models"][0]["views"]
    assert view["explainer"] == "test"
    assert view["cost"] == "3 forward passes, 0.1 s"
    assert view["sets"][0]["claim"] == "area 14 %, keeps 40 % of 70 %"
    assert view["command"] == "xaihub explain cat.png -m toy -e test -p baseline=image:grey.png -t 1 --seed 0"
    for content in (detail["base"], view["map"], view["sets"][0]["mask"]):
        with Image.open(io.BytesIO(base64.b64decode(content.partition(",")[2]))) as image:
            assert image.size == (40, 30)
    assert '<input type="range"' in page or 'type: "range"' in page


def test_the_map_of_a_page_has_the_colours_and_opacity_of_the_scale() -> None:
    values = torch.zeros(1, 8, 8)
    values[0, :, :4], values[0, :, 4:] = -1.0, 1.0
    page = explanation(values=values).html()
    (detail,) = [block for block in blocks(page) if "base" in block]
    content = base64.b64decode(detail["models"][0]["views"][0]["map"].partition(",")[2])
    with Image.open(io.BytesIO(content)) as image:
        drawn = np.asarray(image.convert("RGBA"))
    assert drawn[15, 2, 2] > drawn[15, 2, 0]  # blue opposes
    assert drawn[15, -2, 0] > drawn[15, -2, 2]  # red supports
    assert drawn[15, 2, 3] == drawn[15, -2, 3] == 255
    assert drawn[15, 20, 3] < 200  # near zero the image shows


@pytest.mark.parametrize("where", ["name", "warning", "parameter", "class", "failure"])
def test_what_others_wrote_is_text(where: str) -> None:
    made = explanation(HOSTILE if where == "name" else "cat")
    record = {**made.metadata}
    if where == "warning":
        record["warnings"] = [HOSTILE]
    if where == "parameter":
        record["parameters"] = {HOSTILE: HOSTILE}
    if where == "class":
        made = replace(made, target=replace(SCORE, name=HOSTILE))
    error = ExplainerRefused(HOSTILE if where == "failure" else "no")
    failure = Outcome(source="cat.png", model="toy", explainer="bad", error=error)
    page = Comparison(explanations=[[replace(made, metadata=record)]], failures=[failure]).html()
    assert "alert(1)" in page
    assert "<img src=x" not in page
    assert len(scripts(page)) == 1
    assert all(block for block in blocks(page))


def test_only_the_own_script_may_run_and_nothing_is_loaded() -> None:
    page = explanation().html()
    (script,) = scripts(page)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in page
    assert not elsewhere(page)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/home/jane doe/a b.png", "a b.png"),
        ("cannot read '/home/jane doe/a b.png'", "cannot read 'a b.png'"),
        ("image:/home/jane doe/grey.png", "image:grey.png"),
        ("/home/jane's/a.png: cannot read '/home/b'", "a.png: cannot read 'b'"),
        (f"cannot read {'/home/jane of the doe' + chr(39) + 's/a.png'!r} now", 'cannot read "a.png" now'),
        (f"cannot read {'/of' + chr(34) + chr(39) + 'jane/c.png'!r} now", "cannot read 'c.png' now"),
        ("in /usr/lib/python/x.py, line 3", "in x.py, line 3"),
        (r"C:\Users\jane\a.png", "a.png"),
        (r'"C:\Users\jane doe\a.png" is empty', '"a.png" is empty'),
        (r"\\server\share\a.png", "a.png"),
        ("~/photos/a.png", "a.png"),
        ("file:///home/jane/a.png", "file:a.png"),
        ("see https://arxiv.org/abs/1806.07421 and either/or, 1/2", None),
        ("hf-hub:timm/resnet18 at ~5 % of 1/2", None),
        ("photos/cat.jpg", None),
    ],
)
def test_of_an_absolute_path_only_the_last_part_stays(text: str, shown: str | None) -> None:
    assert pathless({"a": [text]}) == {"a": [text if shown is None else shown]}
    assert json.loads(packed(text)) == (text if shown is None else shown)


def test_a_page_names_no_folder() -> None:
    page = explanation().html() + document(
        "t", tables=[], findings=["in '/home/jane doe/x'"], remarks=["/home/jane doe/y"]
    )
    assert "jane" not in page
    assert "/home" not in page


def test_an_image_in_a_page_has_no_metadata() -> None:
    image = Image.new("RGB", (400, 300), "red")
    exif = image.getexif()
    exif[0x010E] = "secret place"
    exif.get_ifd(0x8825)[1] = "N"
    stored = io.BytesIO()
    image.save(stored, "JPEG", exif=exif, comment=b"secret comment", icc_profile=b"secret profile")
    stored.seek(0)
    with Image.open(stored) as opened:
        small = photo(opened)
    assert b"secret" not in small
    assert b"Exif" not in small
    with Image.open(io.BytesIO(small)) as shown:
        assert not shown.getexif()
        assert max(shown.size) == 360


def test_a_notebook_shows_the_page_in_a_frame_of_its_own() -> None:
    made = explanation()
    ranking = GlobalExplanation(runs=torch.rand(2, 3), names=(HOSTILE, "b", "c"), feature="channel", method="m")
    for shown in (made, Comparison(explanations=[[made]], failures=[]), ranking):
        frame = shown._repr_html_()
        assert frame is not None
        (inside,) = re.findall(r'srcdoc="([^"]*)"', frame)
        assert html.unescape(inside) == shown.html()
        assert 'sandbox="allow-scripts' in frame
    assert "<img src=x" not in ranking.html()
    assert replace(made, image=None)._repr_html_() is None


def test_tables_and_files_of_explanations(tmp_path: Path) -> None:
    made = explanation()
    failure = Outcome(source="cat.png", model="toy", explainer="bad", error=ExplainerRefused("no"))
    both = Comparison(explanations=[[made]], failures=[failure])
    assert made.to_frame().loc[0, "set_area"] == 9 / 64
    assert both.to_frame()["explainer"].tolist() == ["test", "bad"]
    for suffix in ("html", "png", "csv"):
        assert both.save(tmp_path / f"both.{suffix}").stat().st_size > 100
    assert both.plot().axes
    with pytest.raises(OutputError, match=r"end it in .html, .png or .csv"):
        both.save(tmp_path / "both.pdf")
    with pytest.raises(OutputError, match="every one failed"):
        Comparison(explanations=[[]], failures=[failure]).save(tmp_path / "none.html")
    ranking = GlobalExplanation(runs=torch.rand(2, 3), names=("a", "b", "c"), feature="channel", method="m")
    for suffix in ("html", "png", "csv"):
        assert ranking.save(tmp_path / f"ranking.{suffix}").stat().st_size > 100
    assert ranking.to_frame()["rank"].tolist() == [1, 2, 3]


def test_a_map_is_saved_at_the_size_of_the_image(tmp_path: Path) -> None:
    made = explanation(geometry=Geometry(original=(40, 30), scaled=(10, 8), offset=(1, 0), crop=(8, 8)))
    values = np.load(made.save(tmp_path / "map.npy"), allow_pickle=False)
    assert values.shape == (30, 40)
    assert np.isnan(values[:, :4]).all()
    torch.testing.assert_close(torch.from_numpy(values), made.heatmap(original=True), equal_nan=True)
    with np.load(made.save(tmp_path / "map.npz"), allow_pickle=False) as found:
        assert sorted(found) == ["roles", "sets", "values"]
        assert found["sets"].shape == (1, 30, 40)
        assert found["roles"].tolist() == ["sufficient"]
    with Image.open(made.save(tmp_path / "map.png")) as image:
        assert image.size == (40, 30)
    assert made.save(tmp_path / "map.html").read_text("utf-8").startswith("<!DOCTYPE html>")
    assert Explanation.load(made.save(tmp_path / "map")).explainer == "test"
    with pytest.raises(OutputError, match="geometry is unknown"):
        replace(made, geometry=None).save(tmp_path / "other.npy")


def test_colour_map_and_opacity_change_the_figure_and_never_the_values(tmp_path: Path) -> None:
    made = explanation()

    def drawn(**drawing: Any) -> np.ndarray[Any, Any]:
        with Image.open(made.save(tmp_path / "map.png", **drawing)) as image:
            return np.asarray(image.convert("RGB"), dtype=float)

    grey = drawn(alpha=0)
    assert np.ptp(grey, axis=2).max() == 0  # the image alone, on which colour can only come from a map
    assert np.abs(drawn(colormap="viridis") - drawn()).max() > 50
    strongest = drawn(alpha=1, colormap="viridis")[-1, -1]
    assert strongest == pytest.approx([253, 231, 37], abs=12)
    assert "#fde725" in made.html(colormap="viridis")


@pytest.mark.parametrize(
    ("drawing", "message"),
    [
        ({"colormap": "virdis"}, r"there is no colour map 'virdis' \(did you mean 'viridis'"),
        ({"alpha": 1.5}, r"alpha is 1.5, not in \[0, 1\]"),
        ({"alpha": float("nan")}, "alpha is nan"),
    ],
)
def test_a_drawing_that_cannot_be_used_is_refused(drawing: Any, message: str, tmp_path: Path) -> None:
    for draw in (explanation().html, explanation().png, explanation().plot):
        with pytest.raises(ParameterError, match=message):
            draw(**drawing)
    with pytest.raises(ParameterError, match=message):
        explanation().save(tmp_path / "map.png", **drawing)
    assert not any(tmp_path.iterdir())
