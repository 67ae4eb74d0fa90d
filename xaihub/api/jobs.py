"""Explanations of several images at once, in worker processes on this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from xaihub.api.check import Check, Checker
from xaihub.api.explain import Outcome, explain_many
from xaihub.api.loading import Selection
from xaihub.errors import EngineError, XaihubError
from xaihub.evaluation.engine import Lost, Start
from xaihub.evaluation.isolation import error_of, packed, raise_error, unpacked
from xaihub.evaluation.local import LocalEngine
from xaihub.evaluation.run import shared_settings
from xaihub.explainers.explainer import Explainer
from xaihub.explainers.explanation import Explanation
from xaihub.explainers.target import Target
from xaihub.hub import Hub
from xaihub.images import load_image
from xaihub.models.model import Model

PURPOSE = "explain"  # what tells the settings of these workers from those of an evaluation


@dataclass(frozen=True, kw_only=True)
class Request:
    """What every image is explained with: the arguments of `explain_many`, as JSON types."""

    target: str | None = None
    page: int | None = None
    seed: int = 0
    timeout: float = 0
    check: bool = False


def explain_here(
    hub: Hub,
    models: Sequence[Model],
    explainers: Sequence[Explainer],
    sources: Iterable[str],
    request: Request,
    *,
    watch: Callable[[str], None] = lambda _text: None,
    preview: Callable[[Outcome], None] | None = None,
) -> Iterator[Outcome]:
    """Explain images in this process, one after the other; see `explain_many`."""
    wanted = {name: value for name, value in asdict(request).items() if name != "check"}
    checker = Checker(hub) if request.check else None
    return explain_many(models, explainers, sources, watch=watch, preview=preview, checker=checker, **wanted)


def explain_in_processes(
    hub: Hub,
    selection: Selection,
    models: Sequence[Model],
    explainers: Sequence[Explainer],
    sources: Sequence[str],
    request: Request,
    *,
    jobs: int,
    watch: Callable[[str, int, int], None] = lambda _text, _done, _total: None,
) -> Iterator[Outcome]:
    """Explain images as `explain_many` does, in `jobs` processes; outcomes come in the order of the images.

    Each process loads the models of the `selection`, which are `models` here, and has its part of the CPU threads. An
    image that ends its process twice costs its own explanations only.

    Raises:
        EngineError: An explainer exists in this process only, or the standard input is to be read.
        XaihubError: A model does not have the target, or a process cannot load what it needs.
    """
    for model in models:
        Target.parse(request.target, model.classes, model.outputs)
    if "-" in sources:
        raise EngineError("workers cannot read standard input", hint="use one job")
    engine = LocalEngine(jobs=min(jobs, len(sources)))
    settings = {
        **shared_settings(hub, [*explainers, *selection.make_heads(hub)], engine),
        "purpose": PURPOSE,
        "selection": asdict(selection),
        "explainers": [_named(explainer) for explainer in explainers],
        "request": asdict(request),
    }
    tasks = (packed({"number": number, "source": source}, {}) for number, source in enumerate(sources))

    def outcomes() -> Iterator[Outcome]:
        waiting: dict[int, list[Outcome]] = {}
        shown = done = 0
        with closing(engine.run(Start(packed(settings, {})), tasks)) as answers:
            for asked, answer in answers:
                task, _ = unpacked(asked)
                done += 1
                watch(Path(task["source"]).name, done, len(sources))
                waiting[task["number"]] = unpack_outcomes(task["source"], answer, models, len(explainers), request.page)
                while shown in waiting:
                    yield from waiting.pop(shown)
                    shown += 1

    return outcomes()


def pack_outcomes(outcomes: Iterable[Outcome]) -> bytes:
    """Return what a worker made of one image, as bytes."""
    tensors: dict[str, Tensor] = {}
    found: list[dict[str, Any]] = []
    for place, one in enumerate(outcomes):
        record = None
        if one.explanation is not None:
            record = one.explanation.to_dict()
            tensors |= {f"{place}.{name}": tensor for name, tensor in one.explanation.tensors().items()}
        found.append({
            "model": one.model,
            "explainer": one.explainer,
            "record": record,
            "error": None if one.error is None else error_of(one.error),
            "check": None if one.check is None else asdict(one.check),
        })  # fmt: skip
    return packed({"outcomes": found}, tensors)


def unpack_outcomes(
    source: str, answer: bytes | Lost, models: Sequence[Model], width: int, page: int | None
) -> list[Outcome]:
    """Return what `pack_outcomes` packed, with the image; `width` is the number of explainers."""
    if isinstance(answer, Lost):
        error = EngineError(f"{Path(source).name}: the process that explained it {answer}")
        return [Outcome(source=source, model="", explainer="", error=error)]
    message, tensors = unpacked(answer)
    raise_error(message)
    image = None
    found = []
    for place, one in enumerate(message["outcomes"]):
        outcome = Outcome(source=source, model=one["model"], explainer=one["explainer"])
        if one["error"] is not None:
            found.append(replace(outcome, error=_error(one["error"])))
            continue
        image = image or load_image(source, page=page)
        start = f"{place}."
        own = {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}
        made = Explanation.from_dict(one["record"], own)
        if made.geometry is not None:
            made = made.with_image(models[place // width].preprocessing.shown(image), made.geometry)
        check = one["check"] and Check(**{**one["check"], "random": tuple(one["check"]["random"])})
        found.append(replace(outcome, explanation=made, check=check))
    return found


def _error(packed_error: dict[str, Any]) -> XaihubError:
    try:
        raise_error(packed_error)
    except XaihubError as error:
        return error
    raise AssertionError("an error was packed")  # `raise_error` raises


def _named(explainer: Explainer) -> list[Any]:
    return [explainer.name, explainer.parameters, explainer.granted.typed if explainer.granted else None]
