"""Tune an explainer: search its parameters on one half of some images, and measure the gain on the other half."""

from __future__ import annotations

import json
import shlex
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xaihub.api.evaluate import root_paths
from xaihub.api.parameters import Setting, assign
from xaihub.api.registration import default_hub, names, settings
from xaihub.errors import ParameterError
from xaihub.evaluation.config import Choice, Config
from xaihub.evaluation.engine import make_engine
from xaihub.evaluation.run import Watch
from xaihub.evaluation.search import Cost, Gain, Search, Tried
from xaihub.evaluation.space import Space, Values, space
from xaihub.files import write_file
from xaihub.hub import DEFAULT_EXPLAINER, DEFAULT_MODEL, DEFAULT_TIMEOUT, Hub
from xaihub.params import parameters
from xaihub.records import plain

if TYPE_CHECKING:
    import pandas as pd

DEFAULT_METRIC = "insertion"
TRIALS = 16
RESULT = "tuning.json"
# The arguments that are keys of the plan of an evaluation.
SCALARS = (
    "target", "outputs", "labels", "masks", "boxes", "seed", "device", "batch_size", "threads", "backend", "precision",
    "budget", "limit",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """The result of `tune`.

    Attributes:
        explainer: The explainer.
        model: The model.
        metrics: The metrics, each with 1 if higher is better and -1 if lower is.
        searched: The parameters that were searched, with their values or ranges.
        unsearched: Parameters for which nothing says what to try.
        tried: Every setting, the defaults first.
        best: The setting with the best objective on the development images.
        images: Number of development images.
        gain: Its gain over the defaults on the other images; None if it is the defaults or none of them has a score.
        failed: The images that could not be used, with the reasons.
        command: How to explain an image: with the best setting if it is better than the defaults, else with those.
    """

    explainer: str
    model: str
    metrics: Mapping[str, int]
    searched: Sequence[str]
    unsearched: Sequence[str]
    tried: Sequence[Tried]
    best: Tried
    images: int
    gain: Gain | None
    failed: Mapping[str, str]
    command: str

    @property
    def better(self) -> bool:
        """Whether the best setting is better than the defaults: the 95 % interval of its gain is above 0."""
        return self.gain is not None and self.gain.positive

    @property
    def verdict(self) -> str:
        """What was found, in words."""
        if self.best is self.tried[0]:
            others = len(self.tried) - 1
            return (
                f"nothing better than the defaults was found: none of {others} other settings has a better mean on the"
                f" {self.images} development images"
            )
        if self.gain is None:
            return "nothing better than the defaults was shown: no test image has a score of both"
        gain = self.gain
        numbers = f"{gain.mean:+.3g} on {gain.images} other images, 95 % interval {gain.low:+.3g} to {gain.high:+.3g}"
        if self.better:
            return f"better than the defaults: gain {numbers}"
        return f"nothing better than the defaults was shown: gain {numbers}"

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON types."""
        shallow = {item.name: getattr(self, item.name) for item in fields(self)}
        tried = [vars(one) for one in self.tried]
        gain = None if self.gain is None else vars(self.gain)
        found: dict[str, Any] = plain({
            **shallow, "tried": tried, "best": vars(self.best), "gain": gain, "better": self.better,
            "verdict": self.verdict,
        })  # fmt: skip
        return found

    def to_frame(self) -> pd.DataFrame:
        """Return a pandas table with one row per setting: objective, scores, passes, parameters."""
        import pandas as pd

        rows = [
            {"objective": one.objective, **one.scores, "passes": one.passes, **one.parameters, "reason": one.reason}
            for one in self.tried
        ]
        return pd.DataFrame(rows)


def tune(
    images: str | Path | Sequence[str | Path],
    *,
    explainer: str | type = DEFAULT_EXPLAINER,
    metrics: str | type | Sequence[str | type] = DEFAULT_METRIC,
    model: str = DEFAULT_MODEL,
    params: Mapping[str, Any] | None = None,
    trials: int = TRIALS,
    output: str | Path | None = None,
    dry_run: bool = False,
    timeout: float = DEFAULT_TIMEOUT,
    engine: str = "local",
    jobs: int | None = None,
    address: str = "",
    **plan: Any,
) -> Tuning | Cost:
    """Search an explainer's parameters by metrics on half of the images, and report the gain on the other half.

    Args:
        images: Files, folders and so on, as for `evaluate`.
        explainer: The name of an explainer, or its registered class.
        metrics: Names of metrics, or registered classes. Of several, the sum is searched by, in which those for which
            lower is better count negatively (our choice).
        model: The name of a model, or a card.
        params: By name of a parameter, one value that is fixed, a list of values to try, or a range as "4..16"; and
            parameters of the metrics: {"insertion.steps": 20}.
        trials: Maximum number of settings, the defaults included.
        output: A folder that keeps all results, so that an interrupted search can be continued; None keeps nothing.
        dry_run: Return the cost, measured on one image.
        timeout: As for `evaluate`.
        engine: As for `evaluate`.
        jobs: As for `evaluate`.
        address: As for `evaluate`.
        plan: target, outputs, labels, masks, boxes, seed, device, batch_size, threads, backend, precision, budget,
            limit: as for `evaluate`. A budget is the same for every setting.

    Raises:
        XaihubError: An argument cannot be used, there are too few images, or the defaults fail for all of them.

    Example::

        found = xaihub.tune("photos/", explainer="rise", params={"cell": [4, 7, 14]}, budget=500)
        print(found.verdict, found.command)
    """
    unknown = sorted(set(plan) - set(SCALARS))
    if unknown:
        raise ParameterError(f"tune has no argument {unknown[0]!r}", hint=f"known: {', '.join(SCALARS)}")
    given = [images] if isinstance(images, (str, Path)) else images
    texts = [
        Setting(one.name, str(value), one.who)
        for one in settings(params)
        for value in (one.value if isinstance(one.value, (list, tuple)) else [one.value])
    ]
    search = Tuner(
        default_hub(),
        [str(item) for item in given],
        explainer=names(explainer)[0],
        metrics=names(metrics),
        model=model,
        params=texts,
        trials=trials,
        scalars={key: str(value) if isinstance(value, Path) else value for key, value in plan.items()},
    )
    with workplace(None if dry_run else output) as folder:
        if dry_run:
            return search.cost(folder)
        return search.run(folder, timeout=timeout, engine=engine, jobs=jobs, address=address)


@contextmanager
def workplace(output: str | Path | None) -> Iterator[Path]:
    """Yield the folder of a search, which is deleted at the end if the user wants to keep none."""
    if output is not None:
        yield Path(output)
        return
    with tempfile.TemporaryDirectory() as scratch:
        yield Path(scratch)


class Tuner:
    """A search from its arguments, checked; `tune` documents them."""

    def __init__(
        self,
        hub: Hub,
        images: Sequence[str],
        *,
        explainer: str,
        metrics: Sequence[str],
        model: str,
        params: Sequence[Setting],
        trials: int,
        scalars: Mapping[str, Any],
    ) -> None:
        """Take an explainer's own parameters without WHO; those of metrics have it.

        Raises:
            XaihubError: An argument cannot be used.
        """
        if trials < 2:
            raise ParameterError(f"{trials} trials are too few", hint="at least 2: the defaults and another setting")
        if isinstance(scalars.get("budget"), (list, tuple)):
            raise ParameterError("tune takes one budget, which is the same for every setting")
        spec = hub.explainers.get(explainer)
        own = [one for one in params if one.who in ("", spec.name, f"{spec.plugin}/{spec.name}")]
        texts: dict[str, list[str]] = {}
        for one in own:
            texts.setdefault(one.name, []).append(one.value)
        self.space: Space = space(spec.load(), texts, who=spec.name)
        if not self.space.dimensions:
            hint = "give values, as in -p NAME=V1,V2"
            raise ParameterError(f"{spec.name} has no parameter to search", hint=hint)
        chosen = [hub.metrics.get(name) for name in dict.fromkeys(metrics)]
        taken = assign([one for one in params if one not in own], chosen)
        config = Config(
            images=list(images),
            models=[model],
            metrics=[Choice(metric.name, values) for metric, values in zip(chosen, taken, strict=True)],
            **{key: value for key, value in scalars.items() if key in SCALARS and value not in (None, ())},
        )
        if config.backend == "auto":
            config.backend = hub.automatic_backend
        root_paths(hub, config)
        self._hub, self._model, self._explainer, self._config = hub, model, spec.name, config
        self._search = Search(hub, config, spec.name, self.space.settings(trials, config.seed))
        self.notes, self.halves = self._search.notes, self._search.halves

    def cost(self, folder: Path) -> Cost:
        """Return what the search costs, from the defaults on one image."""
        return self._search.cost(folder)

    def run(
        self,
        folder: Path,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        engine: str = "local",
        jobs: int | None = None,
        address: str = "",
        watch: Watch | None = None,
    ) -> Tuning:
        """Search, and write the result into the folder as well."""
        workers = make_engine(self._hub, engine, jobs=jobs, address=address, device=self._config.device)
        found = self._search.run(folder, timeout=timeout, engine=workers, watch=watch)
        better = found.gain is not None and found.gain.positive
        tuning = Tuning(
            explainer=self._explainer,
            model=self._search.models[0].name,
            metrics=self._search.signs,
            searched=[str(one) for one in self.space.dimensions],
            unsearched=self.space.unknown,
            tried=found.tried,
            best=found.best,
            images=found.images,
            gain=found.gain,
            failed=found.failed,
            command=self._command((found.best if better else found.tried[0]).parameters),
        )
        write_file(folder / RESULT, json.dumps(tuning.to_dict(), indent=2, ensure_ascii=False) + "\n")
        return tuning

    def _command(self, values: Values) -> str:
        """Return the command that explains an image with these parameters."""
        items = parameters(self.space.method)
        words = ["xaihub", "explain", "IMAGE", "-m", self._model, "-e", self._explainer]
        for name, value in values.items():
            text = str(value).lower() if value is None or isinstance(value, bool) else str(value)
            words += ["-p", f"{items[name].shown}={text}"]
        words += ["--budget", str(self._config.budget)] if self._config.budget is not None else []
        words += ["--target", str(self._config.target)] if self._config.target is not None else []
        return shlex.join(words)
