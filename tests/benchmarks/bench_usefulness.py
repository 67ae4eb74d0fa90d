"""Count how often a network still names its class when part of the photo is hidden: deactivation against fills.

Run it on demand: `python tests/benchmarks/bench_usefulness.py --photos DIR --models efficientnet_lite0`. Photos count
that the model classifies as `labels.csv` (in the folder or beside it; columns file, class_index) says. Each entry is
the share of photos that keep their class, and the mean probability of the class.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from bench_convad_paper import classified
from torch import Tensor
from torch.nn.functional import interpolate

import xaihub
from xaihub.masking import make_removal, masked_forward_passes

WAYS = [
    "zero",
    "blur",
    "deactivate",
    "deactivate_whole",
    "deactivate_live",
    "deactivate_neighbours",
    "deactivate_layerwise",
]


def main() -> None:
    """Print one table for all models together, in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--models", nargs="+", default=["efficientnet_lite0"])
    parser.add_argument("--ways", nargs="+", default=WAYS)
    options = parser.parse_args()
    if options.photos is None or not options.photos.is_dir():
        print("skipped: give a folder of photos with --photos")
        return
    torch.set_num_threads(1)
    torch.manual_seed(0)
    found: dict[str, list[Tensor]] = {way: [] for way in options.ways}
    for name in options.models:
        model = xaihub.load_model(name, device="cpu")
        for _, _, image, logits in classified(model, options.photos):
            masks, own = _masks(image.shape[-1]), int(logits.argmax())
            for way in options.ways:
                removal = make_removal(way, model, image)
                outputs = torch.cat(
                    [batch.outputs for batch in masked_forward_passes(model, image, masks, removal=removal)]
                )
                kept = (outputs.argmax(1) == own).float()
                found[way].append(torch.stack([kept, outputs.softmax(1)[:, own]], dim=1))
    print(f"{len(found[options.ways[0]])} photos and models ({', '.join(options.models)})\n")
    print("| | centre, 18 % | centre, 51 % | blocks, 50 % | blocks, 75 % |\n|---|---|---|---|---|")
    for way, tables in found.items():
        cells = [f"{kept:.2f} / {probability:.2f}" for kept, probability in torch.stack(tables).mean(0).tolist()]
        print(f"| {way} | {' | '.join(cells)} |")


def _masks(side: int) -> Tensor:
    """Return (4, 1, H, W): a small and a large centre, and half and three quarters of a grid of 8 x 8 blocks."""
    masks = torch.zeros(4, 1, side, side)
    for mask, share in zip(masks, (96 / 224, 160 / 224), strict=False):
        first = round(side * (1 - share) / 2)
        mask[:, first : side - first, first : side - first] = 1
    for mask, share in zip(masks[2:], (0.5, 0.75), strict=True):
        blocks = torch.zeros(64)
        blocks[torch.randperm(64)[: round(64 * share)]] = 1
        mask[0] = interpolate(blocks.view(1, 1, 8, 8), size=(side, side))[0, 0]
    return masks


if __name__ == "__main__":
    main()
