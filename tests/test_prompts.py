"""Text prompts as classes, with a text encoder that knows colours by name, so that the right place is known."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import Tensor

import xaihub
from tests.test_heads import COLOURS, EXPLAINERS, Colours, corner, model, plain, two
from xaihub import TextEncoder
from xaihub.cli import cli
from xaihub.errors import ModelError, ParameterError, XaihubError
from xaihub.hub import Hub

TEXTS = ("a red square", "a green square")


def encode(texts: Sequence[str]) -> Tensor:
    found = [next(value for name, value in COLOURS.items() if name in text) for text in texts]
    return torch.tensor(found, dtype=torch.float32)


def reading(scale: float = 20.0, bias: float | None = None, **values: Any) -> xaihub.Model:
    return model(text_encoder=TextEncoder(encode=encode, scale=scale, bias=bias), **values)


@pytest.mark.parametrize("name", ["occlusion", "rise", "lime", "shap", "integrated_gradients", "gradcam", "convad"])
@pytest.mark.parametrize("wanted", TEXTS)
def test_a_prompt_is_where_its_colour_is(name: str, wanted: str) -> None:
    found = xaihub.explain(
        two(), model=reading(), text=TEXTS, target=wanted, explainer=name, **EXPLAINERS.get(name, {})
    )

    assert found.metadata["head"] == "similarity to the prompts 'a red square', 'a green square'"
    assert found.metadata["outputs"] == "multiclass"
    if name != "convad":  # a set of pixels keeps the decision, which an equal amount of both colours leaves open
        assert corner(found) == wanted.split()[1]


@pytest.mark.parametrize(("bias", "kind"), [(None, "multiclass"), (-10.0, "multilabel")])
def test_clip_takes_a_softmax_and_siglip_a_sigmoid(bias: float | None, kind: str) -> None:
    loaded = reading(scale=20, bias=bias)
    found = xaihub.explain(two(), model=loaded, text=TEXTS, target="a red square", explainer="saliency")
    mean = torch.from_numpy(two()).double().mean((0, 1))
    logits = 20 * mean[:2] / mean.norm() + (bias or 0)

    assert found.metadata["outputs"] == kind
    expected = logits.softmax(0)[0] if bias is None else logits.sigmoid()[0]
    assert found.target.probability == pytest.approx(float(expected), abs=1e-3)


def test_a_single_prompt_is_a_value_for_clip_and_a_label_for_siglip() -> None:
    value = xaihub.explain(two(), model=reading(), text=TEXTS[0], explainer="saliency")
    mean = torch.from_numpy(two()).double().mean((0, 1))
    assert value.metadata["outputs"] == "regression"
    assert value.target.value == pytest.approx(float(mean[0] / mean.norm()), abs=1e-3)

    label = xaihub.explain(two(), model=reading(bias=-1.0), text=[TEXTS[0]], explainer="saliency")
    assert label.metadata["outputs"] == "multilabel"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"text": ["a red square", " "]}, "a prompt is empty"),
        ({"text": ["red", "red"]}, "a prompt is given twice"),
        ({"text": "red", "like": plain("red")}, "--like and --text ask for different scores"),
    ],
)
def test_prompts_that_make_no_sense_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        xaihub.explain(two(), model=reading(), **given)


def test_models_without_a_text_encoder_or_with_another_space_of_features_are_refused() -> None:
    with pytest.raises(ParameterError, match="has no text encoder, so it cannot be compared with text"):
        xaihub.explain(two(), model=model(), text="red")
    other = model(text_encoder=TextEncoder(encode=lambda texts: torch.ones(len(texts), 5)))
    with pytest.raises(ModelError, match="images have 3 features, but texts have 5"):
        xaihub.explain(two(), model=other, text="red", explainer="saliency")
    for wrong in (lambda texts: torch.ones(1, 3), lambda texts: None):
        with pytest.raises(ModelError, match="does not return one row of features per text"):
            xaihub.explain(two(), model=model(text_encoder=TextEncoder(encode=wrong)), text=["a", "b"])


def test_a_model_of_prompts_has_a_hash_of_its_own() -> None:
    from xaihub.models.prompts import aimed

    hashes = {
        aimed(reading(bias=bias), texts=texts).structure_hash for bias in (None, -1.0) for texts in (TEXTS, ["red"])
    }
    hashes |= {aimed(reading(bias=bias), texts=["a red square", "blue"]).structure_hash for bias in (None, -1.0)}
    assert len(hashes) == 6  # texts whose outputs are of the same kind as an ordinary classifier's, too
    assert aimed(reading(), texts=TEXTS).weights_hash == reading().weights_hash
    assert isinstance(aimed(reading()).module, Colours)


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two images, and a hub that loads the reading model under any name."""
    for number in range(2):
        Image.fromarray(two()).save(tmp_path / f"{number}.png")
    monkeypatch.setattr(Hub, "load_model", lambda *_, **__: reading())
    return tmp_path


def run(*words: str) -> Any:
    done = CliRunner().invoke(cli, [*words, "--text", TEXTS[0], "--text", TEXTS[1]])
    assert not isinstance(done.exception, XaihubError | AssertionError), done.output
    return done


def test_explain_compare_and_evaluate_take_prompts(photos: Path) -> None:
    one = run("explain", str(photos / "0.png"), "-e", "saliency", "-t", TEXTS[1], "--json", "-o", str(photos / "out"))
    record = json.loads(one.stdout)[0]
    assert (record["target"]["name"], record["head"]) == (
        TEXTS[1],
        f"similarity to the prompts {TEXTS[0]!r}, {TEXTS[1]!r}",
    )

    grid = run("compare", str(photos / "0.png"), "-e", "saliency", "-o", str(photos / "grid.png"))
    assert (grid.exit_code, (photos / "grid.png").is_file()) == (0, True)

    board = run(
        "evaluate", str(photos), "-e", "saliency", "-k", "sparseness", "--no-controls", "-o", str(photos / "run")
    )
    assert (board.exit_code, "saliency" in board.stdout) == (0, True)
    again = xaihub.evaluate(str(photos / "0.png"), models="m", explainers="saliency", metrics="sparseness",
                            text=TEXTS[0], output=str(photos / "again"), no_controls=True)  # fmt: skip
    assert len(again.scores) == 1
    assert xaihub.compare(str(photos / "0.png"), models=reading(), explainers="saliency", text=TEXTS).failures == []


def test_rank_takes_prompts(photos: Path) -> None:
    # It takes the classes from the prompts, and misses the layer that would read them as a classifier does.
    with pytest.raises(XaihubError, match="classifier"):
        xaihub.rank(str(photos), models=reading(), text=TEXTS, explainers="permutation_importance")
    assert "classifier" in run("rank", str(photos), "-e", "permutation_importance", "-o", str(photos / "out")).output
    with pytest.raises(ParameterError, match="has no text encoder"):
        xaihub.rank(str(photos), models=model(), text="red")
