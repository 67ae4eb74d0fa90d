"""`--html`, `--colormap`, `--alpha` and `--save` of `xaihub explain` and `xaihub compare`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from PIL import Image

from tests.test_html_pages import blocks, elsewhere

Run = Callable[..., Result]
BOTH = ("-e", "control_centre", "-e", "shapley")  # of which the second refuses this model


def test_explain_writes_a_page_per_image_and_maps_at_its_size(run: Run, cat: Path, tmp_path: Path) -> None:
    done = run(
        "explain", str(cat), *BOTH, "-o", "out", "--html", "--save", "npy", "--save", "npz", "--save", "png",
        "--colormap", "viridis", "--alpha", "0.4", "--json",
    )  # fmt: skip
    assert done.exit_code == 1  # one explainer refuses
    record, failed = json.loads(done.stdout)
    assert "was not trained to explain itself" in failed["error"]
    assert record["html"] == "out/cat.html"
    page = Path(record["html"]).read_text("utf-8")
    data, detail = blocks(page)
    assert data["alpha"] == 0.4
    (view,) = detail["models"][0]["views"]
    assert view["scale"]["colours"][-1] == "#fde725"
    assert "was not trained to explain itself" in page
    assert str(tmp_path) not in page
    assert not elsewhere(page)
    assert np.load(record["map_npy"], allow_pickle=False).shape == (150, 225)
    with np.load(record["map_npz"], allow_pickle=False) as found:
        assert found["values"].shape == (150, 225)
    with Image.open(record["map_png"]) as image:
        assert image.size == (225, 150)


def test_compare_writes_a_page_beside_its_figure(run: Run, cat: Path) -> None:
    done = run("compare", str(cat), *BOTH, "-o", "cmp.png", "--html")
    assert done.stdout == "cmp.png\ncmp.html\n"
    page = Path("cmp.html").read_text("utf-8")
    assert [view["explainer"] for view in blocks(page)[1]["models"][0]["views"]] == ["control_centre"]
    assert "was not trained to explain itself" in page


@pytest.mark.parametrize("command", ["explain", "compare"])
def test_a_colour_map_that_does_not_exist_is_refused_before_any_work(run: Run, cat: Path, command: str) -> None:
    done = run(command, str(cat), "-m", "no_such_model", "--colormap", "virdis")
    assert done.exit_code == 2
    assert "there is no colour map 'virdis' (did you mean 'viridis'" in done.stderr
    assert not Path("xaihub-out").exists()
