"""A page about explanations: every map of an image side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Unpack

from xaihub.errors import OutputError
from xaihub.explainers.heat import ALPHA, Drawing, check_drawing
from xaihub.explainers.page.document import data_uri, document, packed
from xaihub.explainers.page.provenance import provenance
from xaihub.explainers.page.view import command, photo, view
from xaihub.explainers.result import Result


def explanations_page(
    explanations: Sequence[Result], failures: Sequence[Mapping[str, Any]] = (), **drawing: Unpack[Drawing]
) -> str:
    """Return a page with the maps of explanations, grouped by image and model.

    Args:
        explanations: At least one; each has its image.
        failures: What failed: who, model and reason.
        drawing: How maps are drawn; `alpha` is where the slider starts.

    Raises:
        OutputError: An explanation has no image.
        ParameterError: The colour map or the opacity cannot be used.
    """
    check_drawing(drawing)
    images: dict[str, list[Result]] = {}
    for one in explanations:
        if one.image is None:
            raise OutputError("this explanation has no image to show", hint="use with_image(image, geometry)")
        images.setdefault(one.image.sha256, []).append(one)
    explainers = list(dict.fromkeys(one.explainer for one in explanations))
    models = dict.fromkeys(one.model for one in explanations)
    names = [group[0].image.name for group in images.values() if group[0].image]
    return document(
        ", ".join(names[:3]) + (f" and {len(names) - 3} more images" if len(names) > 3 else ""),
        lead=f"explained with {', '.join(explainers)} on {', '.join(models)}",
        failures=list(failures),
        data={"explainers": [{"name": name, "control": False} for name in explainers],
              "alpha": drawing.get("alpha", ALPHA)},
        details=[packed(_detail(group, explainers, drawing)) for group in images.values()],
        commands=list(dict.fromkeys(command(_file(one), _record(one)) for one in explanations)),
        facts=provenance(one.metadata for one in explanations),
    )  # fmt: skip


def _detail(explanations: Sequence[Result], explainers: Sequence[str], drawing: Drawing) -> dict[str, Any]:
    image = explanations[0].image
    parts: dict[str, dict[str, Any]] = {}
    for one in explanations:
        part = parts.setdefault(one.model, {
            "model": one.model, "predicted": str(one.predicted), "target": one.claim, "correct": None, "views": [],
        })  # fmt: skip
        part["views"].append({
            "explainer": one.explainer, "index": explainers.index(one.explainer),
            "command": command(_file(one), _record(one)), **view(one, drawing),
        })  # fmt: skip
    base = "" if image is None else data_uri(photo(image.rgb), "jpeg")
    return {"name": "" if image is None else image.name, "base": base, "models": list(parts.values())}


def _file(explanation: Result) -> str:
    """Return what a command may call the image: its path if it has one, of which a page keeps the last part."""
    return "IMAGE" if explanation.image is None else explanation.image.source or "IMAGE"


def _record(explanation: Result) -> dict[str, Any]:
    against = explanation.against
    classes = {"target": explanation.target.to_dict(), "against": against and against.to_dict()}
    return {**explanation.metadata, **classes}
