"""Writing the report of a run: one HTML file, or one with a folder of pages beside it if it would be too large."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Unpack

from xaihub.errors import OutputError
from xaihub.evaluation.report.commands import evaluate_command, repeated, settings
from xaihub.evaluation.report.contents import Contents
from xaihub.evaluation.store import RunStore
from xaihub.evaluation.tables import board_table, checkpoint_table, control_rows, failure_rows, findings
from xaihub.explainers.heat import ALPHA, Drawing, check_drawing
from xaihub.explainers.page.document import data_uri, document, packed
from xaihub.explainers.page.provenance import group, provenance
from xaihub.explainers.page.view import THUMBNAIL, photo
from xaihub.files import decoding, write_file
from xaihub.hub import Hub

NAME = "report.html"
LARGEST = 50 * 10**6  # bytes of the file; beyond, the details of images go into a folder beside it
FOR_IMAGES = 0.8  # fraction of it for the details of images; leaderboards and scores need the rest
LISTED = 1000  # images whose checksums are listed

Watch = Callable[[str, int, int], None]


def write_report(
    store: RunStore,
    hub: Hub,
    path: str | Path,
    *,
    images: bool = True,
    force: bool = False,
    largest: int = LARGEST,
    watch: Watch = lambda _text, _done, _total: None,
    **drawing: Unpack[Drawing],
) -> list[Path]:
    """Write a run as an HTML page that opens offline; return its path, and that of the folder beside it if any.

    Neither is ever half-written; the file is renamed into place last.

    Args:
        store: The run.
        hub: Where summaries and directions of metrics come from.
        path: The file, which ends in .html.
        images: Show images, maps, pixel sets and file names; without, images are numbered.
        force: Replace an existing report.
        largest: Maximum size of the file in bytes, beyond which each image gets a page of its own in the folder.
        watch: Called with the current image, the number of images done, and their total number.
        drawing: How maps are drawn: smooth, colormap and alpha, where the slider starts.

    Raises:
        OutputError: The report exists and `force` is not set, cannot be written, or the run is damaged.
        ParameterError: The colour map or the opacity cannot be used.
    """
    check_drawing(drawing)
    file = Path(path)
    folder = file.with_name(f"{file.stem}-images")
    for place in (file, folder):
        _check_free(place, force=force)
    try:
        with tempfile.TemporaryDirectory(dir=_made(file.parent), prefix=f".{file.stem[:40]}.") as scratch:
            pages = Path(scratch) / folder.name
            with decoding(OutputError(f"the run in {str(store.folder)!r} cannot be shown: a record is damaged")):
                report = _Report(Contents(store, hub, images=images), folder, drawing, largest, watch)
                text = report.text(pages, file.name)
            if folder.exists():
                folder.rename(Path(scratch) / "replaced")
            if pages.exists():
                pages.rename(folder)
            write_file(file, text)
    except OSError as error:
        raise OutputError(f"cannot write {str(file)!r}: {error.strerror or error}") from error
    return [file, folder] if folder.exists() else [file]


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _check_free(place: Path, *, force: bool) -> None:
    """Refuse an output that exists, and with `force` one that is not of a report."""
    if not (place.exists() or place.is_symlink()):
        return
    if not force:
        raise OutputError(f"{str(place)!r} exists", hint="name another file with -o, or replace it with --force")
    if place.suffix != ".html" and not (place.is_dir() and all(map(_is_ours, place.iterdir()))):
        raise OutputError(f"{str(place)!r} is not the folder of a report", hint="name another file with -o")


def _is_ours(file: Path) -> bool:
    return re.fullmatch(r"\d+\.(?:html|jpg)", file.name) is not None and file.is_file()


class _Part(NamedTuple):
    """What a report holds of one image: its place, name, packed details and thumbnail."""

    place: int
    name: str
    detail: str
    thumbnail: bytes | None


class _Report:
    """One report while it is written."""

    def __init__(self, contents: Contents, folder: Path, drawing: Drawing, largest: int, watch: Watch) -> None:
        self._contents, self._folder, self._drawing = contents, folder.name, drawing
        self._largest, self._watch = largest, watch

    def text(self, pages: Path, file: str) -> str:
        """Return the page; what would make it too large goes into the folder `pages`, with links back to `file`."""
        contents, size = self._contents, 0
        kept: list[_Part] = []
        inline: list[str | None] = []
        for place, number in enumerate(contents.explained):
            name = contents.names[contents.order[number]]
            self._watch(name, place, len(contents.explained))
            image, note = contents.load(number)
            detail = packed(contents.detail(number, image, note, self._drawing))
            thumbnail = None if image is None else photo(image.rgb, THUMBNAIL)
            inline.append(data_uri(thumbnail, "jpeg") if thumbnail else None)
            size += len(detail.encode(errors="replace")) + len(inline[-1] or "")
            kept.append(_Part(place, name, detail, thumbnail))
            if size > self._largest * FOR_IMAGES:
                self._flush(kept, pages, file)
        split = pages.exists()
        if split:
            self._flush(kept, pages, file)
            names = [f"{self._folder}/{place + 1:05d}" for place in range(len(inline))]
            data = contents.data([text and f"{name}.jpg" for name, text in zip(names, inline, strict=True)],
                                 [f"{name}.html" for name in names])  # fmt: skip
        else:
            data = contents.data(inline, [None] * len(inline))
        return self._main(data, [part.detail for part in kept], split=split)

    def _flush(self, kept: list[_Part], pages: Path, file: str) -> None:
        """Write images' own pages and thumbnails."""
        last = len(self._contents.explained) - 1
        for place, name, detail, thumbnail in kept:
            links = [("all images", f"../{file}#images")]
            links += [("previous image", f"{place:05d}.html")] if place else []
            links += [("next image", f"{place + 2:05d}.html")] if place < last else []
            write_file(pages / f"{place + 1:05d}.html", self._document(name, {}, details=[detail], links=links))
            if thumbnail:
                write_file(pages / f"{place + 1:05d}.jpg", thumbnail)
        kept.clear()

    def _document(self, title: str, data: Mapping[str, Any], **parts: Any) -> str:
        contents = self._contents
        curves = {name: point._asdict() for name, point in contents.series.items()}
        explainers = [
            {"name": name, "control": control, **curves.get(name, {})} for name, control in contents.explainers.items()
        ]
        names = {"models": contents.models, "explainers": explainers, "metrics": contents.metrics}
        return document(title, data={**names, "alpha": self._drawing.get("alpha", ALPHA), **data}, **parts)

    def _main(self, data: dict[str, Any], details: list[str], *, split: bool) -> str:
        contents = self._contents
        counts = {"image": len(contents.order), "model": len(contents.models),
                  "explainer": len(contents.explainers), "metric": len(contents.metrics)}  # fmt: skip
        lead = ", ".join(f"{count} {noun}{'' if count == 1 else 's'}" for noun, count in counts.items())
        return self._document(
            f"Evaluation {contents.store.folder.absolute().name}", data, lead=lead,
            boards=[board_table(board, contents.summaries) for board in contents.boards],
            findings=findings(contents.boards), budgets=bool(contents.series),
            checkpoints=[checkpoint_table(one) for one in contents.checkpoints], controls=control_rows(contents.boards),
            failures=failure_rows(contents.labelled, contents.store.failed_images(), contents.names, contents.text),
            judged=bool(contents.labels), split=split, details=details,
            commands=[evaluate_command(contents.config, images=contents.images), "xaihub report RUN"],
            remarks=self._remarks(split=split), facts=self._facts(),
        )  # fmt: skip

    def _remarks(self, *, split: bool) -> list[str]:
        contents = self._contents
        texts = [
            "Paths are given without the folders above them. Equal images, weights, settings and versions give equal"
            " explanations; the command under a map repeats that map alone."
        ]
        if repeated(contents.config):
            texts.append("Several settings of one explainer or metric need a file for --config; they are listed below.")
        if contents.lost_labels:
            texts.append(
                "The labels' file cannot be read any more, so correct and wrong predictions are not told apart."
            )
        if not contents.images:
            texts.append("Images, maps and the names of files are left out of this report.")
        if split:
            texts.append(f"Each image has its own page in the folder {self._folder} beside this file.")
        return texts

    def _facts(self) -> list[dict[str, Any]]:
        contents = self._contents
        records = {one.row.record["explainer"] + one.row.model + one.row.explainer: one.row.record
                   for one in contents.shown.values() if one.row.record.get("explainer")}  # fmt: skip
        origins = [(name, origin.described) for name, origin in contents.store.origins.items()]
        metrics = [(metric["name"], metric["summary"] or "not installed here") for metric in contents.metrics]
        sums = list(contents.sources.items())[:LISTED] if contents.images else []
        return [
            group("Settings", settings(contents.config), opened=True),
            *provenance(records.values()),
            group("Plugins of third parties", origins),
            group("Metrics", metrics),
            group("Images (sha256)", [(contents.names[source], checksum) for source, checksum in sums]),
        ]
