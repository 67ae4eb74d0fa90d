"""Copies of the pictures held out, laid out as `xaihub evaluate` takes them."""

from __future__ import annotations

import csv
import io
import shutil
from pathlib import Path

from xaihub.errors import OutputError
from xaihub.explanation import write_file
from xaihub.training.data import Split

__all__ = ["write_held_out"]


def write_held_out(data: Split, folder: Path) -> None:
    """Write `pictures/`, `labels.csv` (file, class_index, label) and, where the truth is known, `masks/`.

    Raises:
        OutputError: The folder holds something already, or cannot be written.
        InputError: A picture cannot be read.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(f"{str(folder)!r} is there already", hint="give --held-out a new folder")
    pictures = data.pictures
    rows = []
    for place, index in enumerate(data.val):
        label = pictures.classes[pictures.labels[index]]
        stem = f"{place:05}_{''.join(sign if sign.isalnum() else '_' for sign in label)[:40]}"
        file = folder / "pictures" / f"{stem}.png"
        if pictures.files:
            source = Path(pictures.names[index])
            file = file.with_suffix(source.suffix)
            write_file(file, lambda there, source=source: shutil.copyfile(source, there))  # type: ignore[misc]
        else:
            image = pictures.read(index)
            write_file(file, lambda there, image=image: image.save(there, format="PNG"))  # type: ignore[misc]
        if pictures.mask is not None:
            mask = pictures.mask(index)
            there = folder / "masks" / f"{stem}.png"
            write_file(there, lambda there, mask=mask: mask.save(there, format="PNG"))  # type: ignore[misc]
        rows.append((file.name, pictures.labels[index], label))
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(("file", "class_index", "label"))
    writer.writerows(rows)
    write_file(folder / "labels.csv", lambda there: there.write_text(buffer.getvalue(), encoding="utf-8"))
