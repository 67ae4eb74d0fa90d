"""Before any work: take the template, load the models, and determine and check where files go."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xaihub.cli._defaults import of_command
from xaihub.cli._options import ExplainOptions, ModelOptions, Opt
from xaihub.cli._output import note
from xaihub.errors import OutputError
from xaihub.hub import DEFAULT_TIMEOUT, Hub

if TYPE_CHECKING:
    from xaihub.api.loading import Selection
    from xaihub.explainers.explainer import Explainer


def _use_template(ctx: click.Context, _param: click.Parameter, name: str | None) -> str | None:
    """Take the defaults of the other options from a template; this option is read before them."""
    if name is not None and not ctx.resilient_parsing:
        ctx.default_map = of_command(ctx.command, name)
    return name


TEMPLATE = Opt(
    "Use the options that are saved under this name (see 'xaihub config').", "-T", "--template", metavar="NAME",
    is_eager=True, callback=_use_template,
)  # fmt: skip


def loading(wanted: ModelOptions) -> dict[str, Any]:
    """Return the keyword arguments of `load_models`."""
    names = ("device", "checkpoint", "classes", "layer", "outputs", "batch_size", "threads", "backend", "precision")
    settings = {setting.name: setting.value for setting in wanted.inputs}
    return {"input": settings, **{name: getattr(wanted, name) for name in names}}


def prepare(hub: Hub, wanted: ExplainOptions) -> tuple[list[Explainer], Selection]:
    """Make the explainers, and return them with the models to load, with their heads.

    Parameters are checked before any model is loaded.
    """
    from xaihub.api.loading import Selection
    from xaihub.api.parameters import make
    from xaihub.explainers.budget import budgeted

    specs, heads = [hub.explainers.get(name) for name in wanted.explainers], [wanted.head] if wanted.head else []
    beside = [hub.heads.get(name) for name in heads]
    explainers = make(hub.explainers, hub.get_explainer, wanted.explainers, wanted.settings, beside=beside)
    explainers = budgeted(explainers, wanted.budget, note(wanted.quiet))
    made = make(hub.heads, hub.get_head, heads, wanted.settings, beside=specs)
    return explainers, Selection(
        models=wanted.models,
        loading=loading(wanted),
        like=wanted.like,
        text=wanted.text,
        heads=[(head.name, head.parameters) for head in made],
    )


def limit_of(timeout: float | None, *, results: int) -> float:
    """Return the limit for one result of a third party; by default, none for a single result, which spoils no other."""
    return (DEFAULT_TIMEOUT if results > 1 else 0) if timeout is None else timeout


@dataclass(frozen=True)
class Destination:
    """Where a command writes.

    Attributes:
        folder: The folder.
        stem: File name without suffix, if the user chose one, or "".
    """

    folder: Path
    stem: str = ""

    @classmethod
    def parse(cls, output: str, *, results: int = 1) -> Destination:
        """Read `-o`: an image suffix makes it a file name, which is for a single result; otherwise it is a folder.

        Raises:
            UsageError: A file name for several results, or another suffix than .png.
            OutputError: Files cannot be written there.
        """
        from xaihub.images import SUFFIXES

        path = Path(output)
        place = cls(path)
        if path.suffix.lower() in SUFFIXES and not path.is_dir():
            if path.suffix.lower() != ".png":
                raise click.UsageError(f"cannot write {output!r}: figures are PNG files; name a .png file or a folder")
            if results > 1:
                raise click.UsageError(f"-o {output!r} is one file, but there are {results} results; name a folder")
            place = cls(path.parent, path.stem)
        _check_writable(place.folder)
        return place

    def path(self, stem: str, suffix: str = "") -> Path:
        """Return the path of a file called `stem`, unless the user chose a name."""
        return self.folder / f"{self.stem or stem}{suffix}"


def _check_writable(folder: Path) -> None:
    nearest = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not nearest.is_dir():
        raise OutputError(f"cannot write to {str(folder)!r}: {str(nearest)!r} is not a folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise OutputError(f"cannot write to {str(folder)!r}: no permission for {str(nearest)!r}")
