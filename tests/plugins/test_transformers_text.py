"""CLIP and SigLIP networks of transformers with random weights: their own scores, and what is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import xaihub
from tests.plugins.photos import photo
from xaihub.errors import ModelError, ParameterError

transformers = pytest.importorskip("transformers", reason="needs xaihub[transformers]")
tokenizers = pytest.importorskip("tokenizers", reason="needs xaihub[transformers]")

SIDE = 32
TOWER = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
VISION = {**TOWER, "image_size": SIDE, "patch_size": 4}
WORDS = ("<pad>", "<s>", "</s>", "<unk>", "a", "dog", "cat", "photo", "of")
TEXT = {
    **TOWER, "max_position_embeddings": 16, "vocab_size": len(WORDS), "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
SIGLIP_TEXT = {**TEXT, "projection_size": 16}
BERT = {**TOWER, "vocab_size": len(WORDS)}
PROMPTS = ["a photo of a dog", "a cat"]
# The class of the network, and its configuration.
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "clip": ("CLIPModel", {"vision_config": VISION, "text_config": TEXT, "projection_dim": 16}),
    "siglip": ("SiglipModel", {"vision_config": VISION, "text_config": SIGLIP_TEXT}),
    "clip images": ("CLIPVisionModelWithProjection", {**VISION, "projection_dim": 16}),
    "siglip images": ("SiglipVisionModel", VISION),
    "clip classifier": (
        "CLIPForImageClassification",
        {"vision_config": VISION, "text_config": TEXT, "projection_dim": 16, "num_labels": 3},
    ),
    "siglip classifier": (
        "SiglipForImageClassification",
        {"vision_config": VISION, "text_config": SIGLIP_TEXT, "num_labels": 3},
    ),
    "clip texts": ("CLIPTextModel", TEXT),
    "clipseg": ("CLIPSegModel", {"vision_config": VISION, "text_config": TEXT, "projection_dim": 16}),
    "chinese clip": ("ChineseCLIPModel", {"vision_config": VISION, "text_config": BERT, "projection_dim": 16}),
}


def saved(folder: Path, kind: str, *, words: tuple[str, ...] | None = WORDS) -> Any:
    """Write a network with random weights, its image processor and a tokenizer that knows some words."""
    cls, values = NETWORKS[kind]
    found = getattr(transformers, cls)
    torch.manual_seed(0)
    made = found(found.config_class(**values)).eval()
    for weight in made.parameters():  # new weights are so small that all scores are alike
        if weight.ndim > 1:
            nn.init.normal_(weight, std=weight[0].numel() ** -0.5)
    transformers.utils.logging.disable_progress_bar()
    made.save_pretrained(folder)
    transformers.ViTImageProcessor(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    if words is not None:
        _tokenizer(words).save_pretrained(folder)
    return made


def _tokenizer(words: tuple[str, ...]) -> Any:
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    vocabulary = {word: number for number, word in enumerate(words)}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token=names["unk_token"]))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=16, **names)


@pytest.mark.parametrize(("name", "kind"), [("clip", "multiclass"), ("siglip", "multilabel")])
def test_scores_are_those_of_the_network_itself(name: str, kind: str, tmp_path: Path) -> None:
    network = saved(tmp_path, name)
    model = xaihub.load_model(f"transformers/{tmp_path}")
    found = xaihub.explain(photo(), model=model, text=PROMPTS, target="a cat", explainer="gradcam")

    padding = "longest" if name == "clip" else "max_length"
    tokens = _tokenizer(WORDS)(PROMPTS, padding=padding, return_tensors="pt")
    tokens.pop("token_type_ids", None)
    with torch.no_grad():
        logits = network(pixel_values=model.prepare(photo())[0][None], **tokens).logits_per_image
    expected = (logits.softmax(1) if kind == "multiclass" else logits.sigmoid())[0, 1]
    assert (model.outputs.kind, found.metadata["outputs"]) == ("embedding", kind)
    assert found.target.name == "a cat"
    assert found.target.probability == pytest.approx(float(expected), abs=1e-4)
    assert model.layer().grid == (8, 8)
    assert float(found.values.abs().max()) > 0


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_other_explainers_read_the_image_tower(name: str, tmp_path: Path) -> None:
    saved(tmp_path, name)
    model = xaihub.load_model(f"transformers/{tmp_path}")
    for explainer, values in {"rise": {"masks": 20}, "attention_gradient": {}, "attention_rollout": {}}.items():
        found = xaihub.explain(photo(), model=model, text=PROMPTS, explainer=explainer, **values)
        assert float(found.values.std()) > 0
        if explainer.startswith("attention"):
            prefix = 1 if name == "clip" else 0
            assert found.metadata["layer"].startswith(f"2 attention blocks over {prefix} + 8x8 tokens")


@pytest.mark.parametrize("name", ["clip images", "siglip images"])
def test_an_image_tower_alone_is_compared_with_images(name: str, tmp_path: Path) -> None:
    saved(tmp_path, name, words=None)
    model = xaihub.load_model(f"transformers/{tmp_path}")
    assert xaihub.explain(photo(), model=model, like=photo(), explainer="gradcam").target.value == pytest.approx(
        1, abs=1e-4
    )
    with pytest.raises(ParameterError, match="has no text encoder.*openclip"):
        xaihub.explain(photo(), model=model, text=PROMPTS)


@pytest.mark.parametrize("name", ["clip classifier", "siglip classifier"])
def test_a_classifier_on_an_image_tower_has_its_own_classes(name: str, tmp_path: Path) -> None:
    network = saved(tmp_path, name, words=None)
    model = xaihub.load_model(f"transformers/{tmp_path}")
    inputs = model.prepare(photo())[0][None]
    assert model.outputs.kind == "multiclass"
    with torch.no_grad():
        torch.testing.assert_close(model.predict(inputs), network(pixel_values=inputs).logits, atol=1e-5, rtol=1e-4)
    assert xaihub.explain(photo(), model=model, explainer="saliency").values.any()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("clip texts", r"\(CLIPTextModel\) cannot be run on images alone: .*input_ids \(pass the network"),
        ("clipseg", r"\(CLIPSegModel\) cannot be run on images alone.*through OpenCLIP: -m openclip/"),
        ("chinese clip", r"\(ChineseCLIPModel\) cannot be run on images alone.*through OpenCLIP: -m openclip/"),
    ],
)
def test_networks_that_need_more_than_images_name_openclip(name: str, message: str, tmp_path: Path) -> None:
    saved(tmp_path, name)
    with pytest.raises(ModelError, match=message) as caught:
        xaihub.load_model(f"transformers/{tmp_path}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        pytest.param("siglip", None, "the tokenizer of .* cannot be loaded: .*openclip/", marks=pytest.mark.slow),
        ("clip", None, "does not fit the network"),
        ("clip", WORDS[:4], "does not fit the network: it reads different texts as the same"),
        ("clip", (*WORDS[:4], *"bcdefgh", "dog", "cat"), "knows more than 9 tokens"),
    ],
)
def test_a_tokenizer_that_is_missing_or_another_ones_is_refused(
    name: str, words: tuple[str, ...] | None, message: str, tmp_path: Path
) -> None:
    saved(tmp_path, name, words=words)
    model = xaihub.load_model(f"transformers/{tmp_path}")
    with pytest.raises(ModelError, match=message) as caught:
        xaihub.explain(photo(), model=model, text=["dog", "cat"], explainer="saliency")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    assert xaihub.explain(photo(), model=model, like=photo(seed=1), explainer="saliency").values.any()
