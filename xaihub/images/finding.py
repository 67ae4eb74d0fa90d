"""Finding image files."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from xaihub.errors import InputError
from xaihub.images.marking import is_marked

ARRAYS = (".npy", ".npz")  # of NumPy
SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", *ARRAYS})
ARCHIVED = "__MACOSX"  # what archives made on a Mac hold in addition to the files


def find_images(paths: Sequence[str | Path], *, note: Callable[[str], None] = lambda _text: None) -> list[str]:
    """Expand files, folders (with subfolders), globs and "-" (standard input) into one list without duplicates.

    In folders, hidden files and folders are skipped, and so is what archives made on a Mac add. In folders and globs,
    figures that xaihub has drawn are skipped; a file that is named is always taken.

    Args:
        paths: What to expand.
        note: Called with one line about the figures that were skipped.

    Raises:
        InputError: A path does not exist, a folder cannot be read or holds no image, a glob matches nothing, or
            all that was found are such figures.
    """
    found = list(dict.fromkeys(found for path in paths for found in _expand(str(path), note)))
    if paths and not found:
        raise InputError(f"{str(paths[0])!r} holds only figures that xaihub has drawn", hint="name a file to use it")
    return found


def image_files(folder: Path) -> list[str]:
    """Return the image files in a folder and its subfolders in order, without hidden ones.

    Raises:
        InputError: A folder cannot be read.
    """
    return sorted(walk_images(folder))


def walk_images(folder: Path) -> Iterator[str]:
    """Yield the image files in a folder and its subfolders in any order, without hidden ones; raises as above."""

    def unreadable(error: OSError) -> None:
        raise InputError(f"cannot read the folder {str(error.filename)!r}: {error.strerror}") from error

    # os.walk reports a folder that it cannot read; pathlib's rglob skips it silently. One path object for each of
    # 50,000 files would be slow.
    for parent, folders, names in os.walk(folder, onerror=unreadable):
        folders[:] = [name for name in folders if not name.startswith(".") and name != ARCHIVED]
        parent = "" if parent == "." else parent.removeprefix("./")
        kept = (name for name in names if not name.startswith("."))
        yield from (os.path.join(parent, name) for name in kept if os.path.splitext(name)[1].lower() in SUFFIXES)  # noqa: PTH118, PTH122


def _expand(path: str, note: Callable[[str], None]) -> Iterator[str]:
    if path == "-" or os.path.isfile(path):  # noqa: PTH113 - pathlib's raises for a name that is too long
        yield path
    elif os.path.isdir(path):  # noqa: PTH112
        hits = [file for file in image_files(Path(path)) if os.path.isfile(file)]  # noqa: PTH113
        if not hits:
            hint = f"hidden files are skipped; known: {' '.join(sorted(SUFFIXES))}"
            raise InputError(f"no image in the folder {path!r}", hint=hint)
        yield from _not_ours(hits, path, note)
    elif glob.has_magic(path):
        hits = sorted(hit for hit in glob.glob(path, recursive=True) if os.path.isfile(hit))  # noqa: PTH113, PTH207
        if not hits:
            raise InputError(f"no file matches {path!r}")
        yield from _not_ours(hits, path, note)
    elif os.path.lexists(path):
        raise InputError(f"cannot read {path!r}: it is not a regular file", hint="use - to read standard input")
    else:
        raise InputError(f"there is no file or folder {path!r}")


def _not_ours(files: list[str], path: str, note: Callable[[str], None]) -> list[str]:
    kept = [file for file in files if not (file.lower().endswith(".png") and is_marked(file))]
    if len(kept) < len(files):
        count = len(files) - len(kept)
        note(f"{path!r}: {count} figure{'s' if count > 1 else ''} that xaihub has drawn skipped")
    return kept
