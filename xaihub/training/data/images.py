"""Labelled images: their checks, and the split into training and validation images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import sha256
from typing import TYPE_CHECKING

import torch

from xaihub.errors import InputError
from xaihub.training.seeds import generator

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, kw_only=True)
class LabelledImages:
    """Labelled images, read one at a time.

    Attributes:
        name: The data's name in messages.
        classes: Class names by index.
        labels: The class index of each image.
        names: A path or another name of each image, for messages and records.
        read: Returns the RGB image at an index; raises `InputError`.
        parts: "train" or "val" for each image; empty if the data have no split of their own.
        files: Whether `names` are file paths.
        upright: Whether mirroring may change the class (digits).
        notes: What was skipped, for the user.
        mask: Returns the white-on-black image of the pixels that determine the class, where they are known.
    """

    name: str
    classes: tuple[str, ...]
    labels: Sequence[int]
    names: Sequence[str]
    read: Callable[[int], Image]
    parts: Sequence[str] = ()
    files: bool = True
    upright: bool = False
    notes: Sequence[str] = field(default_factory=list)
    mask: Callable[[int], Image] | None = None

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def only(self, kept: Sequence[int], note: str) -> LabelledImages:
        """Return the images at the given indices, with a note on why the rest was dropped."""
        return replace(
            self,
            labels=[self.labels[index] for index in kept],
            names=[self.names[index] for index in kept],
            parts=[self.parts[index] for index in kept] if self.parts else (),
            read=partial(_at, self.read, kept),
            mask=None if self.mask is None else partial(_at, self.mask, kept),
            notes=[*self.notes, note],
        )


@dataclass(frozen=True, kw_only=True)
class Split:
    """Images with the indices of those to train on and of those held out for validation."""

    images: LabelledImages
    train: Sequence[int]
    val: Sequence[int]

    @property
    def digest(self) -> str:
        """A checksum of names, labels and split; a run can be resumed with the same data only."""
        lines = [*self.images.classes]
        lines += [f"{part}\t{self.images.names[index]}\t{self.images.labels[index]}"
                  for part, indices in (("train", self.train), ("val", self.val)) for index in indices]  # fmt: skip
        return sha256("\n".join(lines).encode()).hexdigest()


def ordered(images: LabelledImages, classes: Sequence[str]) -> LabelledImages:
    """Return the same images with their classes in the given order."""
    positions = [classes.index(name) for name in images.classes]
    return replace(images, classes=tuple(classes), labels=[positions[label] for label in images.labels])


def _at(read: Callable[[int], Image], kept: Sequence[int], index: int) -> Image:
    return read(kept[index])


def check_classes(images: LabelledImages) -> None:
    """Check that a classifier can be trained on the labels.

    Raises:
        InputError: A label is out of range, a class is empty, or there are fewer than two classes.
    """
    classes = images.classes
    for name, label in zip(images.names, images.labels, strict=True):
        if not 0 <= label < len(classes):
            raise InputError(
                f"{name!r} has the label {label}, but {images.name!r} has {len(classes)} classes",
                hint=f"labels go from 0 to {len(classes) - 1}",
            )
    if len(classes) < 2:
        only = f", {classes[0]!r}" if classes else ""
        raise InputError(f"{images.name!r} has {len(classes)} class{'' if len(classes) == 1 else 'es'}{only}",
                         hint="a classifier needs at least two classes")  # fmt: skip
    counts = Counter(images.labels)
    empty = [classes[index] for index in range(len(classes)) if not counts[index]]
    if empty:
        more = f" and {len(empty) - 1} more" if len(empty) > 1 else ""
        raise InputError(
            f"class {empty[0]!r}{more} of {images.name!r} has no image", hint="add images or remove the class"
        )


def readable(
    images: LabelledImages,
    *,
    skip: bool,
    watch: Callable[[str, int, int], None],
    check: Callable[[Image], object] = lambda _image: None,
) -> LabelledImages:
    """Decode every image once, in threads, and return those that can be read and pass `check`.

    Raises:
        InputError: An image cannot be read and `skip` is off; the message names it.
    """

    def reason(index: int) -> str:
        try:
            check(images.read(index))
        except InputError as error:
            return str(error)
        return ""

    bad: dict[int, str] = {}
    with ThreadPoolExecutor(max_workers=4) as pool:  # Pillow decodes without holding Python's lock
        for index, why in enumerate(pool.map(reason, range(len(images)))):
            watch("checking images", index + 1, len(images))
            if why and not skip:
                pool.shutdown(wait=False, cancel_futures=True)
                raise InputError(why, hint="--set skip_unreadable=true skips such images")
            if why:
                bad[index] = why
    if not bad:
        return images
    first = next(iter(bad.values()))
    kept = [index for index in range(len(images)) if index not in bad]
    return images.only(kept, f"{len(bad)} unreadable images skipped, first: {first}")


def split(images: LabelledImages, *, fraction: float, seed: int) -> Split:
    """Hold out a fraction of every class, drawn by `seed`, unless the data have a split of their own.

    Each class keeps at least one image to train on, and holds out at least one if it has two.

    Raises:
        InputError: No class has two images, or a class is not in the training part of the data's own split.
    """
    if images.parts:
        train = [index for index, part in enumerate(images.parts) if part == "train"]
        val = [index for index, part in enumerate(images.parts) if part == "val"]
        seen = {images.labels[index] for index in train}
        missing = [name for label, name in enumerate(images.classes) if label not in seen]
        if missing:
            raise InputError(f"class {missing[0]!r} of {images.name!r} has no image in its training part")
        if val:
            return Split(images=images, train=train, val=val)
    else:
        train, val = list(range(len(images))), []
    if fraction == 0:
        return Split(images=images, train=train, val=[])
    draw = generator("validation split", seed)
    kept: list[int] = []
    for label in range(len(images.classes)):
        own = [index for index in train if images.labels[index] == label]
        shuffled = [own[position] for position in torch.randperm(len(own), generator=draw).tolist()]
        held = min(max(round(fraction * len(own)), 1), len(own) - 1)
        val += shuffled[:held]
        kept += shuffled[held:]
    if not val:
        raise InputError(
            f"no class of {images.name!r} has two images, so none can be held out", hint="--val 0 holds out none"
        )
    return Split(images=images, train=sorted(kept), val=sorted(val))
