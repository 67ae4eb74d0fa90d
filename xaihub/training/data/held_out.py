"""Copies of the held-out images in the layout that `xaihub evaluate` reads."""

from __future__ import annotations

import csv
import io
import shutil
from functools import partial
from pathlib import Path

from xaihub.errors import OutputError
from xaihub.files import write_file
from xaihub.training.data.images import Split


def write_held_out(data: Split, folder: Path) -> None:
    """Write `images/`, `labels.csv` (file, class_index, label) and, where masks are known, `masks/`.

    Raises:
        OutputError: The folder is not empty or cannot be written.
        InputError: An image cannot be read.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(f"{str(folder)!r} already exists", hint="give --held-out a new folder")
    images = data.images
    partial_folder = folder.with_name(f".{folder.name}.part")  # renamed when it is complete
    shutil.rmtree(partial_folder, ignore_errors=True)
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(("file", "class_index", "label"))
    for number, index in enumerate(data.val):
        label = images.classes[images.labels[index]]
        stem = f"{number:05}_{''.join(sign if sign.isalnum() else '_' for sign in label)[:40]}"
        file = partial_folder / "images" / f"{stem}.png"
        if images.files:
            source = Path(images.names[index])
            file = file.with_suffix(source.suffix)
            write_file(file, partial(shutil.copyfile, source))
        else:
            write_file(file, partial(images.read(index).save, format="PNG"))
        if images.mask is not None:
            write_file(partial_folder / "masks" / f"{stem}.png", partial(images.mask(index).save, format="PNG"))
        writer.writerow((file.name, images.labels[index], label))
    write_file(partial_folder / "labels.csv", table.getvalue())
    try:
        partial_folder.replace(folder)
    except OSError as error:
        raise OutputError(f"cannot write {str(folder)!r}: {error.strerror}") from error
