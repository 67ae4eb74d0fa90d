"""Networks of OpenCLIP: prompts and images, on CLIP's and SigLIP's scales, from weights in safetensors only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import xaihub
from tests.plugins.photos import photo
from xaihub.errors import ModelError

open_clip = pytest.importorskip("open_clip", reason="needs xaihub[open_clip]")

VISION = {"image_size": 32, "layers": 2, "width": 16, "head_width": 8, "patch_size": 4}
TEXT = {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
CONFIG = {"embed_dim": 16, "vision_cfg": VISION, "text_cfg": TEXT}
SIGLIP = {**CONFIG, "custom_text": True, "init_logit_bias": -1.0, "init_logit_scale": 2.3}
PROMPTS = ["a dog", "a cat"]


def saved(folder: Path, config: dict[str, Any] = CONFIG) -> Any:
    """Write a network with random weights, and return it."""
    folder.mkdir(exist_ok=True)
    preprocess = {"mean": [0.4] * 3, "std": [0.3] * 3, "resize_mode": "squash"}
    content = json.dumps({"model_cfg": config, "preprocess_cfg": preprocess})
    (folder / "open_clip_config.json").write_text(content)
    torch.manual_seed(0)
    from xaihub_open_clip.adapter import _quiet

    with _quiet():
        network = open_clip.create_model(f"local-dir:{folder}", load_weights=False).eval()
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, folder / "model.safetensors")
    return network


@pytest.mark.parametrize(("config", "kind"), [(CONFIG, "multiclass"), (SIGLIP, "multilabel")])
def test_scores_are_those_of_open_clip(config: dict[str, Any], kind: str, tmp_path: Path) -> None:
    network = saved(tmp_path, config)
    model = xaihub.load_model(f"openclip/{tmp_path}")
    found = xaihub.explain(photo(), model=model, text=PROMPTS, target="a cat", explainer="gradcam")

    *_, transform = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}", load_weights=False)
    pixels = transform(photo())[None]
    torch.testing.assert_close(model.prepare(photo())[0][None], pixels)
    with torch.no_grad():
        image, text, scale, *bias = network(pixels, open_clip.get_tokenizer(f"local-dir:{tmp_path}")(PROMPTS))
        logits = image @ text.T * scale + (bias[0] if bias else 0)
    expected = logits.softmax(1) if kind == "multiclass" else logits.sigmoid()
    assert found.metadata["outputs"] == kind
    assert found.metadata["head"] == "similarity to the prompts 'a dog', 'a cat'"
    assert found.target.probability == pytest.approx(float(expected[0, 1]), abs=1e-4)
    assert float(found.values.abs().max()) > 0


def test_images_are_compared_with_images_and_tokens_are_dropped(tmp_path: Path) -> None:
    saved(tmp_path)
    model = xaihub.load_model(f"openclip/{tmp_path}")

    assert (model.outputs.kind, model.layer().grid, model.layer().prefix) == ("embedding", (8, 8), 1)
    alike = xaihub.explain(photo(), model=model, like=photo(), explainer="rise", masks=20)
    assert alike.target.value == pytest.approx(1, abs=1e-4)
    sets = xaihub.explain(photo(), model=model, text=PROMPTS, explainer="convad", iterations=2).sets
    assert next(iter(sets)).role == "sufficient"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("openclip/ViT-B-3", "has no architecture 'ViT-B-3' .did you mean 'ViT-B-32'"),
        ("openclip/ViT-B-32.mine", "no weights 'mine' for 'ViT-B-32' .it has openai"),
        ("openclip/ViT-B-32", "no connection to the hub"),
        ("openclip/hf-hub:nobody/nothing", "no connection to the hub"),
        ("openclip/./nothing", "there is no configuration"),
    ],
)
def test_names_that_lead_nowhere(name: str, message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)

    with pytest.raises(ModelError, match=message):
        xaihub.load_model(name)


def test_weights_are_read_from_safetensors_only_and_completely(tmp_path: Path) -> None:
    network = saved(tmp_path)
    name, file = f"openclip/{tmp_path}", tmp_path / "model.safetensors"
    state = network.state_dict()
    other = tmp_path / "other.safetensors"
    save_file({key: value * 2 for key, value in state.items()}, other)
    with pytest.raises(ModelError, match="has 2 files of weights"):
        xaihub.load_model(name)
    chosen = xaihub.load_model(name, checkpoint=other)
    assert torch.equal(chosen.module.visual.proj, network.visual.proj * 2)

    save_file({key: value for key, value in state.items() if key != "visual.proj"}, other)
    with pytest.raises(ModelError, match="is damaged, or does not match the architecture"):
        xaihub.load_model(name, checkpoint=other)
    torch.save(state, tmp_path / "weights.pt")
    with pytest.raises(ModelError, match=r"weights.pt' is not a .safetensors file"):
        xaihub.load_model(name, checkpoint=tmp_path / "weights.pt")
    file.unlink()
    other.unlink()
    with pytest.raises(ModelError, match=r"has 0 files of weights .*pickled weights"):
        xaihub.load_model(name)


def test_a_card_gives_random_weights_or_a_file_but_no_classes(tmp_path: Path) -> None:
    saved(tmp_path / "net")
    card = tmp_path / "card.yaml"
    text = "name: mine\nadapter: openclip\narchitecture: openclip/net\n"
    card.write_text(text + "weights: {source: none}\n")
    (tmp_path / "names.txt").write_text("a\nb\n")
    with pytest.raises(ModelError, match="has no classes of its own"):
        xaihub.load_model(str(card), classes=tmp_path / "names.txt")
    random = xaihub.load_model(str(card))
    card.write_text(text + "weights: {source: file, path: net/model.safetensors}\n")
    assert xaihub.load_model(str(card)).weights_hash != random.weights_hash
