"""A small task of real photos: ImageNet's classes joined to ten superclasses of its hierarchy.

The photos are in a folder; a file labels.csv in it or beside it has the columns file, class_index and label, or names
of files begin with ImageNet's own ids (n01440764_tench.JPEG). Use it as a module, or run
`python tests/benchmarks/superclasses.py PHOTOS -o task.csv` for a file that `xaihub train` takes.
"""

from __future__ import annotations

import argparse
import csv
import random
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import ImageNetInfo
from torch import Tensor

import xaihub
from xaihub.models.saving import write_card, write_weights
from xaihub.training.data.images import Split, split
from xaihub.training.data.sources import open_images
from xaihub.training.head import find_head, with_classes

FOLDS = 5
SAME = 0.97  # photos whose small grey copies correlate by more are taken for one; the nearest that are not, by 0.94

# Class indices of ImageNet. A superclass is what stands below a few nodes of WordNet 3.0: bird, canine, container, fish
# or amphibian or reptile, food or produce, implement, invertebrate, mammal, structure, vehicle or craft. What stands
# below several goes to the first of: animals, food, vehicle, structure, container, implement. A menu is not food.
SUPERCLASSES: dict[str, str] = {
    "bird": "7-24 80-100 127-146",
    "canine": "151-280",
    "container": """
        412 414 427 435 438 440-441 463 469 478 481 492 503-505 519 549 572 588 618 636-637 647 653 659 666
        692 709 712 719-720 725 728 737-738 748 756 771 773 790 797 804 809 849 855 868 876 883 893 896
        898-901 907 910""",
    "fish or reptile": "0-6 25-68 389-397",
    "food": "923-969",
    "implement": """
        418 462 473 491 499 512 521 523 542 557 563 567 587 596 621 623 644 693 696 710 726 730-731 733 740
        749 752 767 784 792 810 813 816 840 909""",
    "invertebrate": "69-79 107-126 300-329",
    "other mammal": "101-106 147-150 281-299 330-388",
    "structure": """
        406 410 415 421 424-425 437 449 454 458 460 467 483 489 497-498 500 506 509 525 536 562 580-582
        598-599 624 634 649 663 668 672 682 698 706 708 716 727 729 743 762 781 788 799 821 825 832 839 860
        863 865 873 877 888 912 915""",
    "vehicle": """
        403-405 407-408 417 428 436 444 450 468 472 484 510-511 537 547 554-555 561 565 569 573 575-576 586
        603 609 612 625 627-628 656-657 660-661 665 670-671 675 690 705 717 724 734 751 757 780 791 802-803
        812 814 817 820 829 833 847 864 866-867 870-871 880 895 913-914""",
}


@dataclass(frozen=True, kw_only=True)
class Photo:
    """One photo: its file, its ImageNet class, and its superclass."""

    file: Path
    class_index: int
    superclass: str


def _members() -> dict[int, str]:
    found = {}
    for name, ranges in SUPERCLASSES.items():
        for part in ranges.split():
            first, _, last = part.partition("-")
            found.update(dict.fromkeys(range(int(first), int(last or first) + 1), name))
    return found


_MEMBERS = _members()


def superclass(class_index: int) -> str:
    """Return the superclass of an ImageNet class, or "" if it is in none."""
    return _MEMBERS.get(class_index, "")


def photos(folder: str | Path) -> list[Photo]:
    """Return the photos of a folder that are in a superclass, in the order of their files; empty if there are none."""
    return [
        Photo(file=file.resolve(), class_index=index, superclass=superclass(index))
        for file, index in sorted(_labelled(Path(folder)))
        if superclass(index) and file.is_file()
    ]


def _labelled(folder: Path) -> list[tuple[Path, int]]:
    for table in (folder / "labels.csv", folder.parent / "labels.csv"):
        if table.is_file():
            with table.open(newline="", encoding="utf-8") as stream:
                return [(folder / row["file"], int(row["class_index"])) for row in csv.DictReader(stream)]
    index_of = {name: index for index, name in enumerate(ImageNetInfo().label_names())}
    named = ((file, index_of.get(file.name.partition("_")[0])) for file in folder.glob("n*_*"))
    return [(file, index) for file, index in named if index is not None]


def photos_or_skip(folder: str | None) -> list[Photo]:
    """Return the photos, or end the benchmark with one line where there are none."""
    found = photos(folder) if folder else []
    if not found:
        print("skipped: no photos; pass --photos FOLDER (with labels.csv, or files named by ImageNet ids)")
        sys.exit(0)
    return found


def write_csv(file: str | Path, found: list[Photo], *, held: list[Photo] | None = None) -> Path:
    """Write a data set for `xaihub train`: columns file (absolute) and label, and, if photos are held out, split."""
    parts = [("train", photo) for photo in found] + [("val", photo) for photo in held or ()]
    columns = 2 if held is None else 3
    with Path(file).open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(("file", "label", "split")[:columns])
        writer.writerows((str(photo.file), photo.superclass, part)[:columns] for part, photo in parts)
    return Path(file)


def deal(found: list[Photo], *, fold: int, seed: int) -> tuple[list[Photo], list[Photo]]:
    """Return the photos to learn from and those held out: over all folds each photo is held out once.

    `seed` deals the photos of each superclass out to the folds; what one superclass has left over goes to the folds
    after those that the last one filled, so folds differ by a photo at most.
    """
    draw = random.Random(seed)
    place, held = 0, set()
    for name in SUPERCLASSES:
        own = [photo for photo in found if photo.superclass == name]
        draw.shuffle(own)
        for photo in own:
            held |= {photo} if place % FOLDS == fold else set()
            place += 1
    return [photo for photo in found if photo not in held], [photo for photo in found if photo in held]


def others(folder: str | Path, held: list[Photo]) -> list[Photo]:
    """Return the photos of another folder that show none of those held out, however a file is called or compressed."""
    known = np.stack([_look(photo) for photo in held])
    return [photo for photo in photos(folder) if (known @ _look(photo)).max() < SAME]


def _look(photo: Photo) -> np.ndarray:
    """Return a small grey copy as a vector of length 1 whose mean is 0: products of two are correlations."""
    with Image.open(photo.file) as opened:
        grey = np.asarray(opened.convert("L").resize((16, 16)), dtype=np.float64).ravel()
    grey -= grey.mean()
    return grey / max(float(np.linalg.norm(grey)), 1e-9)


def held_out(file: str | Path, *, share: float = 0.2, seed: int = 0) -> Split:
    """Return the split of `xaihub train FILE --val SHARE --seed SEED`; its `val` are indices of its images."""
    return split(open_images(str(file)), fraction=share, seed=seed)


def tensors(data: Split, model: Any, part: str = "val") -> tuple[Tensor, Tensor]:
    """Return the (B, C, H, W) inputs in the model's units and the (B,) labels of one part of a split."""
    indices = list(getattr(data, part))
    inputs = [model.prepare(data.images.read(index))[0] for index in indices]
    return torch.stack(inputs), torch.tensor([data.images.labels[index] for index in indices])


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
    digest = write_weights(folder / "weights.safetensors", warm.module.state_dict())
    write_card(folder / "card.yaml", model.card, classes=tuple(SUPERCLASSES), sha256=digest, name=folder.name,
               accuracy="not trained on the superclasses")  # fmt: skip
    return folder / "card.yaml"


def main() -> None:
    """Write the data set, and print how many photos each superclass has."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", nargs="?")
    parser.add_argument("-o", "--output", default="superclasses.csv")
    options = parser.parse_args()
    found = photos_or_skip(options.photos)
    write_csv(options.output, found)
    for name in SUPERCLASSES:
        print(f"{name:16} {sum(photo.superclass == name for photo in found)}")
    print(f"{len(found)} photos in {options.output}; xaihub {xaihub.__version__}")


if __name__ == "__main__":
    main()
