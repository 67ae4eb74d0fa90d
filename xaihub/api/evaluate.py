"""Score explainers with metrics over many images: the plan of a run from its arguments, and the run."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xaihub.api.parameters import Setting, assign
from xaihub.api.registration import default_hub, names, settings
from xaihub.errors import ParameterError
from xaihub.files import rooted
from xaihub.hub import DEFAULT_TIMEOUT, Hub

if TYPE_CHECKING:
    import pandas as pd

    from xaihub.evaluation.checkpoints import Checkpoints
    from xaihub.evaluation.config import Choice, Config
    from xaihub.evaluation.estimate import Cost
    from xaihub.evaluation.leaderboard import Leaderboard
    from xaihub.evaluation.run import Totals

# The arguments that replace a key of the plan, unless they are None or empty.
SCALARS = (
    "target", "outputs", "like", "text", "head", "input", "page", "labels", "masks", "boxes", "seed", "device",
    "batch_size", "threads", "backend", "precision", "budget", "limit", "shard", "maps", "output",
)  # fmt: skip
# Those that change scores by more than rounding may not change within a run.
KEPT = ("precision", "backend")


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The result of `evaluate`.

    Attributes:
        boards: One leaderboard per model.
        checkpoints: Each model compared with the first one of the same architecture.
        totals: What was computed, and what was reused.
        failed: The images that could not be used, with the reason.
        folder: The run, which `evaluate(resume=...)` and `xaihub export` accept.
    """

    boards: list[Leaderboard]
    checkpoints: list[Checkpoints]
    totals: Totals
    failed: Mapping[str, str]
    folder: Path

    @cached_property
    def scores(self) -> pd.DataFrame:
        """One row per score, read when it is first used."""
        from xaihub.evaluation.store import RunStore

        with RunStore(self.folder) as store:
            return store.frame()


def evaluate(
    images: str | Path | Sequence[str | Path] = (),
    *,
    models: str | Sequence[str] = (),
    explainers: str | type | Sequence[str | type] = (),
    metrics: str | type | Sequence[str | type] = (),
    params: Mapping[str, Any] | None = None,
    no_controls: bool = False,
    config: str | Path | None = None,
    resume: str | Path | None = None,
    only_missing: bool = False,
    dry_run: bool = False,
    timeout: float = DEFAULT_TIMEOUT,
    engine: str = "local",
    jobs: int | None = None,
    address: str = "",
    **plan: Any,
) -> Evaluation | Cost:
    """Score explainers with metrics over many images, as `xaihub evaluate` does.

    Args:
        images: Files, folders, globs, "imagefolder:FOLDER", tables (.csv), WebDataset shards (.tar), "hf:NAME:SPLIT".
        models: Names of models, or cards.
        explainers: Names of explainers, or registered classes.
        metrics: Names of metrics, or registered classes.
        params: Parameters of every explainer and metric that has them, or of one: {"rise.masks": 500}.
        no_controls: Skip the controls: random map, edge filter and centre prior.
        config: A YAML file with the plan; other arguments override its keys.
        resume: The folder of a run to resume; may add images, models, explainers and metrics.
        only_missing: With `resume`: do not retry what failed.
        timeout: Limit for one explanation or score by a third-party plugin, which runs in a worker process, in seconds;
            0 for no limit and no worker.
        engine: Where it is computed: "local", "ray", or an engine of a plugin.
        jobs: Number of worker processes; None is none on this machine, and all that there is room for elsewhere.
        address: Where the workers of the engine are.
        dry_run: Return the cost, measured on one image; nothing is stored.
        plan: target, outputs, like, text, head, input (a dictionary), page, labels, masks, boxes, seed, device,
            batch_size, threads, backend, precision, budget (one or a list), limit, shard, maps, output: as the options.

    Raises:
        XaihubError: An argument cannot be used. What fails for one image, model and explainer is in the result.

    Example::

        xaihub.evaluate("photos/", explainers=["gradcam", "rise"], metrics="insertion", output="runs/first").boards
    """
    from xaihub.evaluation.checkpoints import checkpoints
    from xaihub.evaluation.engine import make_engine
    from xaihub.evaluation.leaderboard import boards
    from xaihub.evaluation.plan import load_models, make_plan
    from xaihub.evaluation.run import evaluate as run
    from xaihub.evaluation.store import RunStore

    unknown = sorted(set(plan) - set(SCALARS))
    if unknown:
        raise ParameterError(f"evaluate has no argument {unknown[0]!r}", hint=f"known: {', '.join(SCALARS)}")
    if only_missing and not resume:
        raise ParameterError("only_missing requires resume")
    hub = default_hub()
    given = [images] if isinstance(images, (str, Path)) else images
    made, file = planned(
        hub,
        [str(item) for item in given],
        lists={"models": names(models), "explainers": names(explainers), "metrics": names(metrics)},
        params=settings(params),
        scalars={key: str(value) if isinstance(value, Path) else value for key, value in plan.items()},
        no_controls=no_controls,
        config=config,
        resume=resume,
    )
    folder = resume or made.output
    if not folder and not dry_run:
        raise ParameterError("no output folder for the run", hint="add output='runs/first'")
    workers = make_engine(hub, engine, jobs=jobs, address=address, device=made.device)
    work = make_plan(hub, made, file)
    loaded = load_models(hub, work, file)
    if dry_run:
        from xaihub.evaluation.estimate import estimate

        with tempfile.TemporaryDirectory() as scratch, RunStore(Path(scratch) / "run", create=True) as store:
            return estimate(hub, work, store, loaded, timeout=timeout)
    with RunStore(folder, create=not resume) as store:
        totals = run(hub, work, store, loaded, retry=not only_missing, timeout=timeout, engine=workers)
        scores = store.scores()
        return Evaluation(
            boards=boards(scores, hub, work.labels),
            checkpoints=checkpoints(scores, store.structures, hub),
            totals=totals,
            failed=store.failed_images(),
            folder=store.folder,
        )


def planned(
    hub: Hub,
    images: Sequence[str],
    *,
    lists: Mapping[str, Sequence[str]],
    params: Sequence[Setting],
    scalars: Mapping[str, Any],
    no_controls: bool,
    config: str | Path | None,
    resume: str | Path | None,
) -> tuple[Config, Any]:
    """Return the plan of a run, and the YAML file it was read from, if any.

    Lists of models, explainers and metrics replace those of a file, and extend those of a run that is resumed; then
    `params` are for what is added. Scalars that are None change nothing.

    Raises:
        ParameterError: The arguments exclude each other, nothing gives the images, or a parameter has no taker.
    """
    from xaihub.evaluation.config import Config, read_config
    from xaihub.evaluation.plan import check_known
    from xaihub.evaluation.store import RunStore

    if resume and config:
        raise ParameterError("a resumed run takes its plan from the run", hint="remove the config")
    file = None
    if resume:
        with RunStore(resume) as store:
            made = store.config
            check_known(hub, made, store.origins)
    elif config:
        made, file = read_config(config)
    elif images:
        made = Config(images=[])
    else:
        raise ParameterError("no images to evaluate on", hint="name some, or give a config or a run to resume")
    chosen = {**lists, "heads": [scalars["head"]] if scalars.get("head") else []}
    _update_lists(hub, made, images, chosen, params, add=bool(resume))
    for name in SCALARS:
        if name != "head" and scalars.get(name) not in (None, (), {}):
            if resume and name in KEPT and scalars[name] != getattr(made, name):
                raise ParameterError(
                    f"the run was computed with {name} {getattr(made, name)!r}, so {scalars[name]!r} would mix two",
                    hint="evaluate into a new run",
                )
            setattr(made, name, scalars[name])
    if isinstance(made.budget, tuple):  # the command line's, where it can be repeated
        made.budget = list(made.budget) if len(made.budget) > 1 else made.budget[0]
    for name in ("like", "text"):  # in Python, one may be given without a list
        items = getattr(made, name)
        setattr(made, name, [str(item) for item in ([items] if isinstance(items, str) else items)])
    if no_controls:
        made.controls = False
    if made.backend == "auto":  # what it stands for here is part of the plan
        made.backend = hub.automatic_backend
    root_paths(hub, made)
    return made, file


def _update_lists(
    hub: Hub,
    config: Config,
    images: Sequence[str],
    lists: Mapping[str, Sequence[str]],
    params: Sequence[Setting],
    *,
    add: bool,
) -> None:
    from xaihub.evaluation.config import Choice

    fresh: dict[str, list[Any]] = {"images": list(images), "models": list(lists["models"])}
    choices: dict[str, list[Choice]] = {}
    for kind in ("explainers", "metrics"):
        named = dict.fromkeys(lists[kind]) or ([] if add else getattr(config, kind))
        choices[kind] = [Choice(item) if isinstance(item, str) else item for item in named]
    head: Sequence[str | Choice] = lists["heads"] or ([config.head] if config.head and not add else [])
    choices["heads"] = [Choice(item) if isinstance(item, str) else item for item in head]
    if params:
        specs = [getattr(hub, kind).get(choice.name) for kind, chosen in choices.items() for choice in chosen]
        for choice, own in zip(itertools.chain(*choices.values()), assign(params, specs), strict=True):
            choice.params = {**choice.params, **own}
    for choice in choices.pop("heads"):
        config.head = choice if choice.params else choice.name
    for kind, chosen in choices.items():
        fresh[kind] = [choice if choice.params else choice.name for choice in chosen]
    for name, items in fresh.items():
        old = getattr(config, name) if add or not items else []
        setattr(config, name, old + [item for item in items if item not in old])


def root_paths(hub: Hub, config: Config) -> None:
    """Make paths absolute, so that the run can be resumed from any folder."""
    from xaihub.evaluation.dependence import with_rooted

    config.images = list(dict.fromkeys(map(_image_path, config.images)))
    config.models = list(dict.fromkeys(map(hub.rooted, config.models)))
    config.like = list(map(rooted, config.like))
    for name in ("labels", "masks", "boxes"):
        setattr(config, name, getattr(config, name) and rooted(getattr(config, name)))
    for choice in (*config.explainers, *config.metrics):
        if not isinstance(choice, str):
            choice.params = with_rooted(choice.params)


def _image_path(path: str) -> str:
    from xaihub.evaluation.huggingface import HF
    from xaihub.evaluation.listing import CLASSES

    if path == "-" or path.startswith(HF):
        return path
    kind = CLASSES if path.startswith(CLASSES) else ""
    return rooted(path, kind)
