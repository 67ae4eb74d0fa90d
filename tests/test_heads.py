"""Heads: similarity to images, functions of any outputs, and heads of plugins."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import Tensor, nn

import xaihub
from tests import networks
from xaihub import Head, HeadSpec, Hub, Meta, Outputs, hookimpl
from xaihub.cli import cli
from xaihub.errors import ModelError, ParameterError, XaihubError
from xaihub.hub.host import PluginHost
from xaihub.models.similarity import like

SIDE = networks.SIDE
COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


class Colours(nn.Module):
    """The mean colour of an image, from cells of 8 x 8 pixels: its similarity to a uniform image is known."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.Sequential(nn.AvgPool2d(8), nn.Conv2d(3, 3, 1), nn.ReLU())
        with torch.no_grad():
            self.cells[1].weight.copy_(torch.eye(3)[:, :, None, None] * 0.25)
            self.cells[1].bias.fill_(0.5)  # undoes the normalisation

    def forward(self, inputs: Tensor) -> Any:
        return self.cells(inputs).mean((2, 3))


def plain(colour: str) -> np.ndarray:
    return np.full((SIDE, SIDE, 3), COLOURS[colour], np.uint8)


def two() -> np.ndarray:
    """Grey, with a red square at the upper left and a green one at the lower right."""
    image = np.full((SIDE, SIDE, 3), 60, np.uint8)
    image[:16, :16], image[-16:, -16:] = COLOURS["red"], COLOURS["green"]
    return image


def corner(explanation: xaihub.Explanation) -> str:
    cells = nn.functional.avg_pool2d(explanation.heatmap()[None, None], 16)[0, 0]
    return {0: "red", 1: "red", 15: "green"}.get(int(cells.argmax()), "elsewhere")


def model(network: type[nn.Module] = Colours, **values: Any) -> xaihub.Model:
    return networks.model(network, **{"outputs": "embedding", **values})


EXPLAINERS = {
    "gradcam": {"layer": "cells"}, "saliency": {}, "occlusion": {"window": 16, "stride": 16, "baseline": "grey"},
    "rise": {"masks": 800, "cell": 4}, "lime": {"samples": 200, "features": "grid:4"},
    "integrated_gradients": {"steps": 8}, "shap": {}, "first_principles": {"baseline": "zero"},
}  # fmt: skip


@pytest.mark.parametrize("name", ["occlusion", "rise", "lime", "shap", "integrated_gradients", "first_principles"])
@pytest.mark.parametrize("colour", ["red", "green"])
def test_similarity_of_colours_is_where_the_colour_is(name: str, colour: str) -> None:
    found = xaihub.explain(two(), model=model(), like=plain(colour), explainer=name, **EXPLAINERS[name])
    assert corner(found) == colour
    mean = torch.from_numpy(two()).double().mean((0, 1))
    channel = 0 if colour == "red" else 1
    assert found.target.value == pytest.approx(float(mean[channel] / mean.norm()), abs=1e-3)
    assert found.metadata["head"].startswith("similarity to ")


@pytest.mark.parametrize("name", [*EXPLAINERS, "convad"])
def test_like_one_rather_than_another(name: str) -> None:
    image = two()
    image[:16, :32] = COLOURS["red"]  # more red than green
    parameters = {**EXPLAINERS, "convad": {"baseline": "zero"}}[name]
    found = xaihub.explain(image, model=model(), like=[plain("red"), plain("green")], explainer=name, **parameters)
    assert " rather than like " in found.claim
    if name not in ("gradcam", "saliency", "convad"):
        assert corner(found) == "red"
    if name == "gradcam":
        assert found.heatmap()[4, 4] > found.heatmap()[-4, -4]
    if name == "convad":
        assert found.sets[0].mask[:16, :32].any()
        assert not found.sets[0].mask[-16:, -16:].any()


def test_a_classifier_is_compared_by_what_its_classifier_reads() -> None:
    class Classifier(Colours):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(3, 7)

        def forward(self, inputs: Tensor) -> Any:
            return self.head(super().forward(inputs))

    bare = like(model(), [plain("red")])
    whole = networks.model(Classifier)
    headed = like(whole, [plain("red")])
    inputs = networks.noise(2)
    assert torch.allclose(bare(inputs), headed(inputs))
    assert whole.predict(inputs).shape == (2, 7)  # unchanged
    assert headed.weights_hash == whole.weights_hash
    assert not any(part._forward_pre_hooks for part in headed.module.modules())
    assert like(whole, [plain("green")]).structure_hash != headed.structure_hash


def test_what_similarity_refuses() -> None:
    with pytest.raises(XaihubError, match="no file"):
        like(model(), ["missing.png"])
    with pytest.raises(ParameterError, match="needs an image"):
        like(model(), [])

    class Tokens(Colours):
        def forward(self, inputs: Tensor) -> Any:
            return self.cells(inputs).flatten(2)

    with pytest.raises(ModelError, match="one row of features per image"):
        like(model(Tokens), [plain("red")])


class Structured(Colours):
    """Returns a dictionary with a tuple in it."""

    def forward(self, inputs: Tensor) -> Any:
        maps = self.cells(inputs)
        return {"maps": (maps, maps.mean((2, 3)))}


def redness(outputs: Any) -> Tensor:
    return outputs["maps"][1][:, 0] - outputs["maps"][1].mean(1)


@pytest.mark.parametrize("name", ["occlusion", "rise", "lime", "shap", "saliency", "gradcam", "first_principles"])
def test_a_function_of_any_structure_is_a_target(name: str) -> None:
    net = networks.model(Structured)
    found = xaihub.explain(two(), model=net, target=redness, explainer=name, **EXPLAINERS[name])
    assert (found.target.name, found.metadata["head"]) == ("redness", "redness")
    if name not in ("saliency", "gradcam"):
        assert corner(found) == "red"
    named = xaihub.FunctionHead(lambda outputs: -redness(outputs), "lack of red")
    assert xaihub.explain(two(), model=net, target=named, explainer="saliency").claim.startswith("lack of red -0.")


def test_what_a_function_must_return() -> None:
    for function in (lambda outputs: outputs["maps"][0], lambda _: 1.0):
        with pytest.raises(ModelError, match="the target 'score' returned"):
            xaihub.explain(two(), model=networks.model(Structured), target=function, explainer="saliency")
    with pytest.raises(ModelError, match="instead of one row of class scores"):
        xaihub.explain(two(), model=networks.model(Structured), explainer="saliency")


class Channel(Head):
    """The mean of one colour."""

    channel: Annotated[int, Meta(ge=0, le=2, description="The colour.")] = 0

    outputs = Outputs("regression", "brightness")
    classes = ("mean",)

    def rows(self, outputs: Any) -> Tensor:
        return outputs[:, self.channel : self.channel + 1]


class HeadPlugin:
    @hookimpl
    def xaihub_register_heads(self) -> list[HeadSpec]:
        return [HeadSpec(name="channel", target=f"{__name__}:Channel", summary="The mean of one colour.")]


def test_a_plugin_registers_a_head() -> None:
    host = PluginHost()
    host.register(HeadPlugin(), name="colours")
    hub = Hub(host)
    headed = model().with_head(hub.get_head("channel", channel="1"))
    found = xaihub.explain(two(), model=headed, explainer="occlusion", window=16, stride=16, baseline="zero")
    assert (corner(found), found.target.unit, found.metadata["head"]) == ("green", "brightness", "channel")
    with pytest.raises(ParameterError):
        hub.get_head("channel", channel=3)


def test_heads_of_different_parameters_are_different_models() -> None:
    host = PluginHost()
    host.register(HeadPlugin(), name="colours")
    hashes = {
        model().with_head(Hub(host).get_head("channel", channel=number)).structure_hash for number in range(3)
    } | {model().structure_hash}
    assert len(hashes) == 4


def test_one_score_at_a_time() -> None:
    for given in ({"like": plain("red")}, {"text": "red"}):
        with pytest.raises(ParameterError, match="ask for different scores"):
            xaihub.explain(two(), model=model(), target=lambda outputs: outputs[:, 0], **given)


def test_the_command_line_compares_images(tmp_path: Path) -> None:
    for colour in COLOURS:
        Image.fromarray(plain(colour)).save(tmp_path / f"{colour}.png")
    Image.fromarray(two()).save(tmp_path / "query.png")
    card = tmp_path / "dino.yaml"
    card.write_text("name: bare\narchitecture: test_vit\nweights: {source: none}\noptions: {num_classes: 0}\n")
    common = ["explain", str(tmp_path / "query.png"), "-m", str(card), "-o", str(tmp_path / "out"), "--json"]

    def run(*more: str) -> Any:
        return CliRunner().invoke(cli, [*common, *more], prog_name="xaihub")

    one = json.loads(run("--like", str(tmp_path / "red.png")).stdout)[0]
    assert "error" not in one, one
    assert one["target"]["name"] == "like red"
    assert -1 <= one["target"]["value"] <= 1
    both = json.loads(run("--like", str(tmp_path / "red.png"), "--like", str(tmp_path / "blue.png")).stdout)[0]
    assert (both["target"]["name"], both["against"]["name"]) == ("like red", "like blue")
    refused = run()
    assert refused.exit_code != 0
    assert "returns an embedding of 64 features" in refused.stderr
    assert "--like FILE" in refused.stderr
    assert run("--head", "nothing").exit_code != 0


def test_similarity_and_declared_outputs_are_evaluated(tmp_path: Path) -> None:
    for colour in COLOURS:
        Image.fromarray(plain(colour)).save(tmp_path / f"{colour}.png")
    Image.fromarray(two()).save(tmp_path / "query.png")
    card = tmp_path / "bare.yaml"
    card.write_text("name: bare\narchitecture: test_resnet\nweights: {source: none}\noptions: {num_classes: 0}\n")
    common = [str(tmp_path / "query.png"), "-m", str(card), "-e", "gradcam", "--no-controls", "--json", "-q"]

    def run(*more: str) -> Any:
        return CliRunner().invoke(cli, ["evaluate", *common, *more], prog_name="xaihub")

    result = run("-k", "insertion", "--like", str(tmp_path / "red.png"), "-o", str(tmp_path / "run"))
    assert result.exit_code == 0, result.stderr
    result = run("-k", "log_odds", "--outputs", "multilabel", "-t", "1", "-o", str(tmp_path / "labels"))
    assert result.exit_code == 0, result.stderr
    result = run("-k", "insertion", "-o", str(tmp_path / "nothing"))
    assert "returns an embedding" in result.stderr + result.stdout
