"""Runs every explainer on every family of models, and writes docs/reference/support-matrix.md.

`make support-matrix` runs it, which takes minutes. Results are stored in build/support-matrix/, one file per family, so
that an interrupted run can be resumed and several runs can share the families. A change of a plugin, or of the core,
invalidates its results.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from xaihub import Hub, Model, ModelCard, ModelRequest, Weights, XaihubError, load_image, sample_photo
from xaihub.hub.host import PluginHost
from xaihub.params import parameters
from xaihub.testing.budgets import small_budget

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "reference" / "support-matrix.md"
KEPT = ROOT / "build" / "support-matrix"
# Warnings about small budgets are not about the network.
ASK_FOR_MORE = ("use more", "raise iterations", "raise the budget", "standard error")
# The parts of the library that affect a method's result on a network.
CORE = ("explainers", "masking", "models")

# One small timm architecture per family.
FAMILIES = {
    "resnet": "resnet18",
    "resnetv2": "resnetv2_50",
    "convnext": "convnext_atto",
    "efficientnet_lite": "tf_efficientnet_lite0",
    "mobilenetv3": "mobilenetv3_small_050",
    "densenet": "densenet121",
    "regnet": "regnety_002",
    "vgg": "vgg11_bn",
    "inception": "inception_v3",
    "vit": "vit_tiny_patch16_224",
    "deit-distilled": "deit_tiny_distilled_patch16_224",
    "vit-hybrid": "vit_tiny_r_s16_p8_224",
    "swin": "swin_tiny_patch4_window7_224",
    "swinv2": "swinv2_tiny_window8_256",
    "mixer": "mixer_s32_224",
    "poolformer": "poolformer_s12",
    "maxvit": "maxvit_rmlp_pico_rw_256",
    "levit": "levit_128s",
    "xcit": "xcit_nano_12_p16_224",
    "mobilevit": "mobilevit_xxs",
    "eva02": "eva02_tiny_patch14_224",
}
TINY = small_budget(224)


def main() -> int:
    """Compute the missing results, write the page, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--family", action="append", choices=FAMILIES, help="run only this family; may be repeated")
    parser.add_argument("--explainer", action="append", help="run only this explainer; may be repeated")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    hub = Hub(PluginHost(environ={"XAIHUB_LOAD_PLUGINS": ""}).load())
    sources = {spec.name: _checksum(spec.target.partition(".")[0]) for spec in hub.explainers}
    for family in chosen.family or FAMILIES:
        kept = _read(family)
        wanted = [name for name in chosen.explainer or sources if f"{family} {name} {sources[name]}" not in kept]
        if not wanted:
            continue
        model = _model(hub, FAMILIES[family])
        kept[f"{family} layer"] = _layer(model)
        for name in wanted:
            started = time.perf_counter()
            outcome = _try(hub, name, model)
            kept[f"{family} {name} {sources[name]}"] = outcome
            sys.stderr.write(f"{family:18}{name:28}{time.perf_counter() - started:6.1f} s  {outcome}\n")
            KEPT.mkdir(parents=True, exist_ok=True)
            (KEPT / f"{family}.json").write_text(json.dumps(kept, indent=1), encoding="utf-8")
    kept = {key: value for family in FAMILIES for key, value in _read(family).items()}
    missing = [key for key in _keys(sources) if key not in kept]
    if missing:
        sys.stderr.write(f"{len(missing)} results are missing, so the page is not written\n")
        return 1
    PAGE.write_text(_page(kept, sources), encoding="utf-8")
    broken = [f"{key}: {kept[key]}" for key in _keys(sources) if kept[key].startswith("error: ")]
    sys.stderr.write("".join(f"{line}\n" for line in broken))
    return 1 if broken else 0


def _read(family: str) -> dict[str, str]:
    file = KEPT / f"{family}.json"
    found: dict[str, str] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return found


def _keys(sources: dict[str, str]) -> Iterator[str]:
    return (f"{family} {name} {checksum}" for family in FAMILIES for name, checksum in sources.items())


def _model(hub: Hub, architecture: str) -> Model:
    """Build an architecture with random weights such that every part of it has an effect."""
    torch.manual_seed(0)
    card = ModelCard(name=architecture, architecture=architecture, weights=Weights(source="none"))
    model: Model = (
        hub.adapters.get("timm").load()().build(ModelRequest(name=architecture, card=card), torch.device("cpu"))
    )
    model.baselines = {spec.name: spec.load for spec in hub.baselines}
    for module in model.module.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d) and module.running_mean is not None:
            module.running_mean.normal_(0, 0.1)
            assert module.running_var is not None  # noqa: S101 - exists together with the mean
            module.running_var.uniform_(0.5, 1.5)
    with torch.no_grad():
        for name, weight in model.module.named_parameters():
            if name.endswith("bias"):
                weight.normal_(0, 0.1)
            elif weight.ndim == 1:  # norms and layer scales, initialised to 1, 0 or 1e-6
                weight.uniform_(0.5, 1.5)
            elif not weight.any():  # a head initialised to 0 makes every score constant
                weight.normal_(0, 0.02)
    return model


def _layer(model: Model) -> str:
    try:
        layer = model.layer()
    except XaihubError as error:
        return f"none: {error.message}"
    return f"`{layer.name}` ({layer.layout}, {layer.grid[0]} x {layer.grid[1]})"


def _try(hub: Hub, name: str, model: Model) -> str:
    """Explain the sample photo once; return "works", "warns: REASON", "refused: REASON" or "error: REASON"."""
    try:
        known = parameters(hub.explainers.get(name).load())
        explainer = hub.get_explainer(name, **{key: value for key, value in TINY.items() if key in known})
        inputs, _ = model.prepare(load_image(sample_photo()).rgb)
        (explanation,) = explainer.explain(model, inputs.unsqueeze(0))
    except XaihubError as error:
        return f"refused: {_general(error.message, model)}"
    except Exception as error:  # any exception of a method is a result here
        return f"error: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    # Small budgets are intended here.
    warnings = [text for text in explanation.warnings if not any(word in text for word in ASK_FOR_MORE)]
    return f"warns: {_general('; '.join(warnings), model)}" if warnings else "works"


def _general(text: str, model: Model) -> str:
    """Remove from a reason what differs between machines or models."""
    text = re.sub(f"(model )?{re.escape(repr(model.name))}", "this model", text)
    text = re.sub(r"\d+\.\d+(e[+-]?\d+)?%?|\d+e[+-]?\d+|\d+%", "…", text)
    return re.sub(r"layer '[^']+'", "its layer", re.sub(r" \(\d+\)", "", text))


def _checksum(package: str) -> str:
    """Return a short checksum of a plugin's source and the core that it uses."""
    digest = hashlib.sha256(json.dumps(TINY).encode())
    for place in (*(ROOT / "xaihub" / name for name in CORE), ROOT / "plugins" / package):
        for file in [place] if place.is_file() else sorted(place.rglob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def _page(kept: dict[str, str], sources: dict[str, str]) -> str:
    reasons: dict[str, int] = {}
    rows = []
    for name, checksum in sources.items():
        cells = []
        for family in FAMILIES:
            verdict, _, reason = kept[f"{family} {name} {checksum}"].partition(": ")
            mark = {"works": "yes", "warns": "yes", "refused": "no", "error": "**error**"}[verdict]
            number = reasons.setdefault(reason, len(reasons) + 1) if reason else 0
            cells.append(f"{mark} [{number}]" if number else mark)
        rows.append(f"| `{name}` | {' | '.join(cells)} |")
    layers = [f"| {family} | `{name}` | {kept[f'{family} layer']} |" for family, name in FAMILIES.items()]
    return "\n".join(
        [
            "# Support matrix",
            "",
            "Which explainer works on which family of models. Each cell is one run on the sample photo with random",
            "weights, biases and running statistics and the smallest budget; `make support-matrix` writes this page.",
            "*yes* is a result, *yes* with a number a result with a warning, and *no* a refusal; numbers refer to the",
            "reasons below. An explainer refuses where its map would be misleading.",
            "",
            f"| explainer | {' | '.join(FAMILIES)} |",
            f"|---|{'---|' * len(FAMILIES)}",
            *rows,
            "",
            "## Reasons",
            "",
            *[f"{number}. {reason}" for reason, number in reasons.items()],
            "",
            "## Layers",
            "",
            "The default layer for activation maps, which `--layer` overrides"
            " ([how it is chosen](../explanation/layer-choice.md)).",
            "",
            "| family | architecture | layer (layout, cells) |",
            "|---|---|---|",
            *layers,
            "",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
