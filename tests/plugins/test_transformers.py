"""Networks of transformers: what they declare, and that they equal timm's with the same weights."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from timm.models import ResNet, VisionTransformer
from timm.models.resnet import BasicBlock
from torch import nn

import xaihub
from tests.plugins.photos import photo
from xaihub import Hints, Model
from xaihub.errors import ExplainerRefused, ModelError, ParameterError

transformers = pytest.importorskip("transformers", reason="needs xaihub[transformers]")

SIDE = 32
VIT = {
    "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32, "image_size": SIDE,
    "patch_size": 4,
}  # fmt: skip
DINO = {**VIT, "mlp_ratio": 2}
SWIN = {"image_size": 64, "patch_size": 4, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 2], "window_size": 4}
CONVNEXT = {"image_size": SIDE, "hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2}
RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
TIMM = {"embedding_size": 64, "hidden_sizes": [8, 8, 8, 16], "depths": [1, 1, 1, 1]}  # what timm cannot change
NAMES = {0: "cat", 1: "dog", 2: "fox"}
ATTENTION = ("attention_rollout", "attention_gradient")

# Class of the network, its configuration, the tokens before its patches, the grid of its features, its attention.
NETWORKS: dict[str, tuple[str, dict[str, Any], int, int, str]] = {
    "vit": ("ViTForImageClassification", VIT, 1, 8, "read"),
    "deit": ("DeiTForImageClassificationWithTeacher", VIT, 2, 8, "read"),
    "dinov2": ("Dinov2Model", DINO, 1, 8, "read"),
    "dinov2-classifier": ("Dinov2ForImageClassification", DINO, 1, 8, "read"),
    "dinov2-registers": ("Dinov2WithRegistersModel", {**DINO, "num_register_tokens": 4}, 5, 8, "read"),
    "dinov3": ("DINOv3ViTModel", {**VIT, "num_register_tokens": 4}, 5, 8, "read"),
    "vit-backbone": ("ViTModel", VIT, 1, 8, "read"),
    "swin": ("SwinForImageClassification", SWIN, 0, 8, "windows"),
    "convnext": ("ConvNextForImageClassification", CONVNEXT, 0, 4, "no attention"),
    "resnet": ("ResNetForImageClassification", RESNET, 0, 4, "no attention"),
    "resnet-backbone": ("ResNetModel", RESNET, 0, 4, "no attention"),
}


@pytest.fixture(autouse=True, scope="module")
def _quiet() -> Any:
    transformers.utils.logging.disable_progress_bar()
    yield
    transformers.utils.logging.enable_progress_bar()


def network(kind: str, seed: int = 0, **more: Any) -> Any:
    cls, values = NETWORKS[kind][:2]
    found = getattr(transformers, cls)
    labels = {"id2label": NAMES, "label2id": {name: index for index, name in NAMES.items()}}
    torch.manual_seed(seed)
    # A new network's weights are so small that all classes score alike.
    made = found(found.config_class(**{**values, **(labels if "Image" in cls else {}), **more})).eval()
    for name, weight in made.named_parameters():
        if weight.ndim > 1 or "token" in name:
            nn.init.normal_(weight, std=weight[0].numel() ** -0.5)
    return made


def saved(folder: Path, made: Any, **processor: Any) -> str:
    made.save_pretrained(folder)
    side = getattr(made.config, "image_size", SIDE)
    values = {"size": {"height": side, "width": side}, **processor}
    transformers.ViTImageProcessor(**values).save_pretrained(folder)
    return f"transformers/{folder}"


@pytest.mark.parametrize("kind", NETWORKS)
def test_layers_and_attention_are_found_as_in_networks_of_timm(kind: str, tmp_path: Path) -> None:
    cls, _, prefix, side, attention = NETWORKS[kind]
    model = xaihub.load_model(saved(tmp_path, network(kind)))
    classifies = "Image" in cls

    assert model.outputs.kind == ("multiclass" if classifies else "embedding")
    assert model.classes == (("cat", "dog", "fox") if classifies else ())
    layer = model.layer()
    assert (layer.grid, layer.prefix) == ((side, side), prefix)
    aim: dict[str, Any] = {} if classifies else {"like": photo(seed=1)}
    found = xaihub.explain(photo(), model=model, explainer="gradcam", **aim)
    assert float(found.values.abs().max()) > 0
    for name in ATTENTION:
        if attention == "read":
            record = xaihub.explain(photo(), model=model, explainer=name, **aim).metadata
            assert record["layer"].startswith(f"3 attention blocks over {prefix} + 8x8 tokens")
        else:
            with pytest.raises(ExplainerRefused, match=attention):
                xaihub.explain(photo(), model=model, explainer=name, **aim)


def as_timm(made: Any) -> nn.Module:
    """timm's vision transformer with the weights of transformers'."""
    other = VisionTransformer(
        img_size=SIDE, patch_size=4, embed_dim=16, depth=3, num_heads=2, mlp_ratio=2, num_classes=3
    )
    for norm in (part for part in other.modules() if isinstance(part, nn.LayerNorm)):
        norm.eps = made.config.layer_norm_eps
    renamed = {
        "vit.embeddings.cls_token": "cls_token", "vit.embeddings.position_embeddings": "pos_embed",
        "vit.embeddings.patch_embeddings.projection": "patch_embed.proj", "vit.layernorm.": "norm.",
        "classifier": "head", "vit.layers": "blocks", "attention.o_proj": "attn.proj", "layernorm_before": "norm1",
        "layernorm_after": "norm2",
    }  # fmt: skip
    state, source = {}, made.state_dict()
    for name, weight in source.items():
        if ".q_proj." in name:
            parts = [source[name.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            name, weight = name.replace("attention.q_proj", "attn.qkv"), torch.cat(parts)
        elif "k_proj" in name or "v_proj" in name:
            continue
        for old, new in renamed.items():
            name = name.replace(old, new)
        state[name] = weight
    other.load_state_dict(state)
    return other


def as_timm_resnet(made: Any) -> nn.Module:
    """timm's residual network with the weights of transformers'."""
    other = ResNet(BasicBlock, [1, 1, 1, 1], channels=(8, 8, 8, 16), num_classes=3, zero_init_last=False)
    state = {}
    for name, weight in made.state_dict().items():
        name = name.replace("resnet.embedder.embedder.convolution", "conv1").replace("classifier.1", "fc")
        name = name.replace("resnet.embedder.embedder.normalization", "bn1")
        name = re.sub(r"resnet\.encoder\.stages\.(\d)\.layers", lambda m: f"layer{int(m[1]) + 1}", name)
        name = name.replace("shortcut.convolution", "downsample.0").replace("shortcut.normalization", "downsample.1")
        name = re.sub(r"layer\.(\d)\.convolution", lambda m: f"conv{int(m[1]) + 1}", name)
        name = re.sub(r"layer\.(\d)\.normalization", lambda m: f"bn{int(m[1]) + 1}", name)
        state[name] = weight
    other.load_state_dict(state)
    return other


EQUAL = {
    "vit": (
        "gradcam",
        "attention_rollout",
        "attention_gradient",
        "integrated_gradients",
        "rise",
        "occlusion",
        "convad",
    ),
    "resnet": ("gradcam", "layercam", "integrated_gradients", "rise", "convad"),
}
FEW = {
    "integrated_gradients": {"steps": 4}, "rise": {"masks": 40}, "occlusion": {"window": 8, "stride": 8},
    "convad": {"iterations": 2},
}  # fmt: skip


@pytest.mark.parametrize("kind", EQUAL)
def test_maps_equal_those_of_timms_network_with_the_same_weights(kind: str, tmp_path: Path) -> None:
    made = network(kind, **(TIMM if kind == "resnet" else {}))
    side = 128 if kind == "resnet" else SIDE
    ours = xaihub.load_model(saved(tmp_path, made, size={"height": side, "width": side}))
    other = as_timm(made) if kind == "vit" else as_timm_resnet(made)
    hints = Hints(prefix_tokens=NETWORKS[kind][2])
    theirs = Model(other, name="timm", preprocessing=ours.preprocessing, classes=ours.classes, hints=hints)
    inputs = ours.prepare(photo())[0][None]

    torch.testing.assert_close(ours.predict(inputs), theirs.predict(inputs), atol=1e-5, rtol=1e-5)
    for name in EQUAL[kind]:
        explainer = xaihub.get_explainer(name, **FEW.get(name, {}))
        one, two = (explainer.explain(model, inputs, "dog")[0] for model in (ours, theirs))
        scale = float(two.values.abs().max())
        assert scale > 0, name
        torch.testing.assert_close(one.values, two.values, atol=1e-4 * scale, rtol=0, msg=name)
        assert [one.mask.tolist() for one in one.sets] == [one.mask.tolist() for one in two.sets]


@pytest.mark.parametrize(
    ("processor", "values"),
    [
        ("ViTImageProcessor", {"size": {"height": 32, "width": 24}}),
        ("ViTImageProcessor", {"size": {"height": 32, "width": 32}, "resample": 0, "rescale_factor": 2 / 255}),
        ("ViTImageProcessor", {"size": {"height": 32, "width": 32}, "do_normalize": False}),
        ("CLIPImageProcessor", {"size": {"shortest_edge": 32}, "crop_size": {"height": 24, "width": 24}}),
        ("ConvNextImageProcessor", {"size": {"shortest_edge": 28}, "crop_pct": 0.875}),
        ("ConvNextImageProcessor", {"size": {"shortest_edge": 384}}),
    ],
)
def test_inputs_equal_those_of_the_image_processor(processor: str, values: dict[str, Any]) -> None:
    from xaihub_transformers.preprocessing import preprocessing

    made = getattr(transformers, processor)(**values)
    ours, _ = preprocessing(made, (SIDE, SIDE), 3)(photo())
    theirs = made(photo(), return_tensors="pt")["pixel_values"][0]

    assert ours.shape == theirs.shape
    # The processor scales tensors and ours scales images: rounding, and more of it where values are sharp.
    step = 2 * made.rescale_factor / (min(made.image_std) if made.do_normalize else 1)
    assert float((ours - theirs).abs().mean()) < step
    if values.get("resample") != 0:  # nearest pixels are chosen at other halves
        assert float((ours - theirs).abs().max()) < 2.5 * step


def test_a_processor_that_does_more_is_refused() -> None:
    from xaihub_transformers.preprocessing import preprocessing

    made = transformers.ViTImageProcessor(do_pad=True)
    with pytest.raises(ModelError, match="ViTImageProcessor sets 'do_pad', which is not supported"):
        preprocessing(made, (SIDE, SIDE), 3)


@pytest.mark.parametrize(
    ("problem", "labels", "kind"),
    [
        ("single_label_classification", 3, "multiclass"),
        ("multi_label_classification", 3, "multilabel"),
        ("multi_label_classification", 1, "binary"),
        ("regression", 2, "regression"),
        (None, 3, "multiclass"),
    ],
)
def test_the_problem_type_declares_the_outputs(problem: str | None, labels: int, kind: str, tmp_path: Path) -> None:
    names = {index: f"name {index}" for index in range(labels)}
    made = network("resnet", problem_type=problem, id2label=names, label2id={v: k for k, v in names.items()})
    model = xaihub.load_model(saved(tmp_path, made))

    assert model.outputs.kind == kind
    assert model.classes == (("not name 0", "name 0") if kind == "binary" else tuple(names.values()))


def test_a_single_output_without_a_problem_type_has_to_be_declared(tmp_path: Path) -> None:
    name = saved(tmp_path, network("resnet", num_labels=1, id2label={0: "LABEL_0"}, label2id={"LABEL_0": 0}))

    with pytest.raises(ModelError, match="one output"):
        xaihub.explain(photo(), model=xaihub.load_model(name), explainer="saliency")
    assert xaihub.load_model(name, outputs="binary").classes == ("negative", "positive")


def test_other_class_names_a_card_and_random_weights(tmp_path: Path) -> None:
    name = saved(tmp_path / "net", network("resnet"))
    (tmp_path / "names.txt").write_text("Katze\nHund\nFuchs\n")
    assert xaihub.load_model(name, classes=tmp_path / "names.txt").classes == ("Katze", "Hund", "Fuchs")

    card = tmp_path / "card.yaml"
    card.write_text(
        "name: mine\narchitecture: transformers/net\nadapter: transformers\nclasses: [a, b, c]\n"
        "input: {size: [32, 48], mean: [0, 0, 0], std: [1, 1, 1], crop_pct: 1}\nweights: {source: none}\n"
    )
    model = xaihub.load_model(str(card))
    assert (model.classes, model.input_size) == (("a", "b", "c"), (3, 32, 48))
    assert model.weights_hash != xaihub.load_model(name).weights_hash


def changed(folder: Path, file: str, **values: Any) -> None:
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def only_pickled(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def incomplete(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    del state["classifier.1.weight"]
    save_file(state, folder / "model.safetensors", {"format": "pt"})


def with_code(folder: Path) -> None:
    (folder / "own.py").write_text("raise SystemExit('was run')\n")
    changed(folder, "config.json", model_type="own", auto_map={"AutoConfig": "own.Config"})


REFUSED: dict[str, tuple[Any, str]] = {
    "pickled": (only_pickled, "no weights in safetensors, and pickled ones"),
    "incomplete": (incomplete, "no weights for 1 entries of its network, the first being 'classifier.1.weight'"),
    "code": (with_code, "needs code from its repository, which is never run"),
    "unknown": (lambda folder: changed(folder, "config.json", model_type="newest"), "cannot load .*newest"),
    "damaged": (lambda folder: (folder / "model.safetensors").write_bytes(b"\x00" * 40), "cannot load"),
    "no configuration": (lambda folder: (folder / "config.json").unlink(), "there is no configuration"),
    "no processor": (lambda folder: (folder / "preprocessor_config.json").unlink(), "preprocessing of .* is unknown"),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_what_cannot_be_loaded_safely_and_completely_is_refused(fault: str, tmp_path: Path) -> None:
    name = saved(tmp_path, network("resnet"))
    spoil, message = REFUSED[fault]
    spoil(tmp_path)

    with pytest.raises(ModelError, match=message) as caught:
        xaihub.load_model(name)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_and_text_are_refused_where_they_have_no_meaning(tmp_path: Path) -> None:
    name = saved(tmp_path, network("resnet"))

    with pytest.raises(ModelError, match="cannot be replaced"):
        xaihub.load_model(name, checkpoint=tmp_path / "model.safetensors")
    with pytest.raises(ParameterError, match="has no text encoder"):
        xaihub.explain(photo(), model=xaihub.load_model(name), text="a cat")


def test_without_a_connection_the_error_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))

    with pytest.raises(ModelError, match="no connection to the hub") as caught:
        xaihub.load_model("transformers/nobody/nothing@main")
    assert "\n" not in str(caught.value)
