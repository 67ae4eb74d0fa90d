"""The cost of a run, measured on one image and multiplied."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import msgspec

from xaihub.errors import InputError, XaihubError
from xaihub.evaluation import places
from xaihub.evaluation.dependence import POOL
from xaihub.evaluation.plan import Plan
from xaihub.evaluation.run import Run
from xaihub.evaluation.sources import Item, Sources
from xaihub.evaluation.store import RunStore
from xaihub.hub import DEFAULT_TIMEOUT, Hub
from xaihub.models.model import Model


class Part(NamedTuple):
    """The cost of one explanation or one score of the first image, passes shared with other scores included."""

    model: str
    what: str
    forward_passes: float
    backward_passes: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The cost of a run.

    Attributes:
        images: Number of images.
        forward_passes: Forward passes for all of them; passes that several scores share are counted once.
        backward_passes: Backward passes for all of them.
        seconds: Wall time for all of them, in one process.
        record_bytes: Size of their records on disk.
        map_bytes: Size of their maps on disk.
        parts: The cost of each explanation and score of the first image.
        unknown: What failed on the first image, with the reason; its cost on other images is unknown.
    """

    images: int
    forward_passes: int
    backward_passes: int
    seconds: float
    record_bytes: int
    map_bytes: int
    parts: Sequence[Part]
    unknown: Mapping[str, str] = field(default_factory=dict)


def estimate(
    hub: Hub,
    plan: Plan,
    store: RunStore,
    models: Sequence[Model] | None = None,
    *,
    timeout: float = DEFAULT_TIMEOUT,
) -> Cost:
    """Evaluate the first readable image of a plan in a store of its own, count the passes, and multiply.

    Args:
        hub: Where the plan's names come from.
        plan: What to compute.
        store: Where the results of the first image go.
        models: The plan's models as returned by `load_models`; loaded here by default.
        timeout: Limit for one explanation or score by a plugin of a third party, in seconds, as in the run; what
            exceeds it is in `Cost.unknown`.

    Raises:
        XaihubError: No image can be read, a model cannot be loaded, or the store cannot be written.
    """
    readable = next((item for item in plan.images.items() if _readable(item, plan.config.page)), None)
    if readable is None:
        raise InputError("none of the images can be read")
    images = Sources([readable])  # of the others, those that it may be combined with are enough
    images.add(plan.images.items(), limit=POOL + 1)
    config = msgspec.structs.replace(plan.config, shard=None)
    first = replace(plan, images=images, config=config)
    with store.writing():
        spent = Run(hub=hub, plan=first, store=store, limit=1, timeout=timeout).work(models)
    rows = store.rows()
    # A metric that refuses the first image may accept others, so its cost is unknown rather than zero.
    unknown = {row.metric if row.record else row.explainer: row.error for row in rows if row.error}
    unknown |= {Path(source).name: reason for source, reason in store.failed_images().items()}
    parts = [
        Part(row.model, f"{row.metric} of {row.explainer}", row.forward_passes, row.backward_passes, row.seconds)
        for row in rows
        if not row.error
    ]
    for row in {row.key: row for row in rows if row.record}.values():
        spent_on_map = (row.record[name] for name in ("forward_passes", "backward_passes", "seconds"))
        parts.append(Part(row.model, f"explaining with {row.explainer}", *spent_on_map))
    count = len(plan.images)
    record_bytes, map_bytes = store.size()
    return Cost(
        images=count,
        # The trial predicted the neighbours as well; a run predicts each image once per model.
        forward_passes=(spent.forward_passes - spent.predicted + len(plan.config.models)) * count,
        backward_passes=spent.backward_passes * count,
        seconds=sum(part.seconds for part in parts) * count,
        record_bytes=record_bytes * count,
        map_bytes=map_bytes * count,
        parts=parts,
        unknown=unknown,
    )


def _readable(item: Item, page: int | None) -> bool:
    try:
        places.load(item.where, item.source, page=page)
    except XaihubError:
        return False
    return True
