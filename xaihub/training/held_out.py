"""Copies of the images held out, laid out as `xaihub evaluate` takes them."""

from __future__ import annotations

import csv
import io
import shutil
from functools import partial
from pathlib import Path

from xaihub.errors import OutputError
from xaihub.files import write_file
from xaihub.training.data import Split

__all__ = ["write_held_out"]


def write_held_out(data: Split, folder: Path) -> None:
    """Write `images/`, `labels.csv` (file, class_index, label) and, where the truth is known, `masks/`.

    Raises:
        OutputError: The folder holds something already, or cannot be written.
        InputError: An image cannot be read.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(f"{str(folder)!r} is there already", hint="give --held-out a new folder")
    images, whole = data.images, folder
    folder = whole.with_name(f".{whole.name}.part")  # until all is there
    shutil.rmtree(folder, ignore_errors=True)
    rows = []
    for place, index in enumerate(data.val):
        label = images.classes[images.labels[index]]
        stem = f"{place:05}_{''.join(sign if sign.isalnum() else '_' for sign in label)[:40]}"
        file = folder / "images" / f"{stem}.png"
        if images.files:
            source = Path(images.names[index])
            file = file.with_suffix(source.suffix)
            write_file(file, partial(shutil.copyfile, source))
        else:
            write_file(file, partial(images.read(index).save, format="PNG"))
        if images.mask is not None:
            write_file(folder / "masks" / f"{stem}.png", partial(images.mask(index).save, format="PNG"))
        rows.append((file.name, images.labels[index], label))
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(("file", "class_index", "label"))
    writer.writerows(rows)
    write_file(folder / "labels.csv", lambda there: there.write_text(buffer.getvalue(), encoding="utf-8"))
    try:
        folder.replace(whole)
    except OSError as error:
        raise OutputError(f"cannot write {str(whole)!r}: {error.strerror}") from error
