"""A small task of real photos: ImageNet's classes joined to ten superclasses of its hierarchy.

The photos are in a folder; a file labels.csv in it or beside it has the columns file, class_index and label. Use it as
a module, or run `python tests/benchmarks/superclasses.py PHOTOS -o task.csv` for a file that `xaihub train` takes.
"""

from __future__ import annotations

import argparse
import csv
import random
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import xaihub
from xaihub.training.data import Split, split
from xaihub.training.head import find_head, with_classes
from xaihub.training.result import write_card, write_weights
from xaihub.training.sources import open_pictures

# Class indices of ImageNet, from and to. The animals' ranges are the order of WordNet; things made by people are not in
# the order of what they are for, so these are named one by one, as far as the photos at hand go.
SUPERCLASSES: dict[str, tuple[tuple[int, int], ...]] = {
    "bird": ((7, 24), (80, 100), (127, 146)),
    "building": ((483, 483), (663, 663), (743, 743), (853, 853), (863, 863), (873, 873)),
    "container": ((463, 463), (503, 503), (653, 653), (773, 773), (883, 883), (893, 893)),
    "dog": ((151, 275),),
    "fish or reptile": ((0, 6), (25, 68), (389, 397)),
    "food": ((923, 969), (992, 997)),
    "invertebrate": ((69, 79), (107, 126), (300, 329)),
    "other mammal": ((101, 106), (147, 150), (276, 299), (330, 388)),
    "tool": ((473, 473), (553, 553), (563, 563), (623, 623), (693, 693), (783, 783), (813, 813)),
    "vehicle": ((403, 403), (573, 573), (603, 603), (803, 803), (833, 833), (913, 913)),
}


@dataclass(frozen=True, kw_only=True)
class Photo:
    """One photo: its file, its ImageNet class, and its superclass."""

    file: Path
    class_index: int
    superclass: str


def superclass(class_index: int) -> str:
    """Return the superclass of an ImageNet class, or "" if it is in none."""
    for name, ranges in SUPERCLASSES.items():
        if any(first <= class_index <= last for first, last in ranges):
            return name
    return ""


def photos(folder: str | Path) -> list[Photo]:
    """Return the photos of a folder that are in a superclass, in the order of their files; empty if there are none."""
    for table in (Path(folder) / "labels.csv", Path(folder).parent / "labels.csv"):
        if table.is_file():
            with table.open(newline="", encoding="utf-8") as stream:
                rows = [(Path(folder) / row["file"], int(row["class_index"])) for row in csv.DictReader(stream)]
            return [
                Photo(file=file.resolve(), class_index=index, superclass=superclass(index))
                for file, index in sorted(rows)
                if superclass(index) and file.is_file()
            ]
    return []


def photos_or_skip(folder: str | None) -> list[Photo]:
    """Return the photos, or end the benchmark with one line where there are none."""
    found = photos(folder) if folder else []
    if not found:
        print("skipped: no photos; pass --photos FOLDER (with labels.csv: file,class_index,label)")
        sys.exit(0)
    return found


def write_csv(found: list[Photo], file: str | Path) -> Path:
    """Write a data set for `xaihub train`: columns file (absolute), label, class_index."""
    with Path(file).open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(("file", "label", "class_index"))
        writer.writerows((str(photo.file), photo.superclass, photo.class_index) for photo in found)
    return Path(file)


def write_fold(found: list[Photo], file: str | Path, *, fold: int, folds: int, seed: int) -> Path:
    """Write a data set that brings its own split: over all folds each photo is held out once.

    `seed` deals the photos of each superclass out to the folds; what one superclass has left over goes to the folds
    after those that the last one filled, so folds differ by a photo at most.
    """
    draw = random.Random(seed)
    place, parts = 0, {}
    for name in SUPERCLASSES:
        own = [photo for photo in found if photo.superclass == name]
        draw.shuffle(own)
        for photo in own:
            parts[photo.file] = "val" if place % folds == fold else "train"
            place += 1
    with Path(file).open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(("file", "label", "split"))
        writer.writerows((str(photo.file), photo.superclass, parts[photo.file]) for photo in found)
    return Path(file)


def held_out(file: str | Path, *, share: float = 0.2, seed: int = 0) -> Split:
    """Return the split of `xaihub train FILE --val SHARE --seed SEED`; its `val` are indices of its pictures."""
    return split(open_pictures(str(file)), share=share, seed=seed)


def tensors(data: Split, model: Any, part: str = "val") -> tuple[Tensor, Tensor]:
    """Return the (B, C, H, W) inputs in the model's units and the (B,) labels of one part of a split."""
    indices = list(getattr(data, part))
    inputs = [model.prepare(data.pictures.read(index))[0] for index in indices]
    return torch.stack(inputs), torch.tensor([data.pictures.labels[index] for index in indices])


def warm_card(folder: str | Path, name: str = "efficientnet_lite0") -> Path:
    """Write the card of an ImageNet model whose classifier is, for each superclass, the mean over its classes.

    With a few photos a class, training from there starts at a sensible accuracy instead of at chance.
    """
    model = xaihub.load_model(name, device="cpu")
    head: Any = find_head(model)
    weight, bias = head.weight.detach().clone(), head.bias.detach().clone()
    members = [[i for i in range(len(weight)) if superclass(i) == group] for group in SUPERCLASSES]
    warm = with_classes(model, tuple(SUPERCLASSES), seed=0)
    fresh: Any = find_head(warm)
    with torch.no_grad():
        fresh.weight.copy_(torch.stack([weight[rows].mean(0) for rows in members]))
        fresh.bias.copy_(torch.stack([bias[rows].mean(0) for rows in members]))
    folder = Path(folder)
    sha256 = write_weights(folder / "weights.safetensors", warm.module.state_dict())
    plain = xaihub.Hub().get_objective("cross_entropy")
    write_card(folder / "card.yaml", model.card, classes=tuple(SUPERCLASSES), sha256=sha256,
               accuracy="not trained on the superclasses", objective=plain, wrapped=False)  # fmt: skip
    return folder / "card.yaml"


def main() -> None:
    """Write the data set, and print how many photos each superclass has."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", nargs="?")
    parser.add_argument("-o", "--output", default="superclasses.csv")
    options = parser.parse_args()
    found = photos_or_skip(options.photos)
    write_csv(found, options.output)
    for name in SUPERCLASSES:
        print(f"{name:16} {sum(photo.superclass == name for photo in found)}")
    print(f"{len(found)} photos in {options.output}; xaihub {xaihub.__version__}")


if __name__ == "__main__":
    main()
