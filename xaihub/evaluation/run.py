"""Running an evaluation: every explanation once, every score once, whatever interrupts it."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from torch import Tensor

from xaihub.errors import InputError, OutputError, XaihubError
from xaihub.evaluation.dependence import Dependence, code, neighbours, with_files
from xaihub.evaluation.plan import Plan
from xaihub.evaluation.results import Key
from xaihub.evaluation.store import RunStore
from xaihub.explainers.explainer import Explainer
from xaihub.explainers.explanation import Explanation
from xaihub.explainers.target import Target
from xaihub.hub import Hub
from xaihub.images import SourceImage, load_image
from xaihub.metric import Case, Scene
from xaihub.models.model import Model, Runtime
from xaihub.models.preprocessing import Geometry
from xaihub.records import canonical

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

__all__ = ["Cost", "Totals", "estimate", "evaluate"]

INPUTS = 32  # kept, as each image is a neighbour of several


@dataclass(kw_only=True)
class Totals:
    """What a run did.

    Attributes:
        explanations: Explanations made now.
        scores: Scores measured now.
        kept: Scores that were there already.
        failed: Images, explanations and scores that failed now.
        forward_passes: Rows that went forward.
        backward_passes: Rows that went backward.
        seconds: Wall time.
    """

    explanations: int = 0
    scores: int = 0
    kept: int = 0
    failed: int = 0
    forward_passes: int = 0
    backward_passes: int = 0
    seconds: float = 0.0


def evaluate(
    hub: Hub,
    plan: Plan,
    store: RunStore,
    *,
    retry: bool = True,
    watch: Callable[[str, int, int], None] | None = None,
) -> Totals:
    """Do what is missing of a plan; may be interrupted and called again at any time.

    Args:
        hub: Where models come from.
        plan: What to do.
        store: Where results go.
        retry: Try again what failed before.
        watch: Told what is done now, and how many explanations are done of how many.

    Raises:
        XaihubError: A model cannot be loaded, or the store cannot be written. An image, an explainer or a metric
            that fails is recorded as failed, and the run goes on.
    """
    started = time.perf_counter()
    totals = Totals()
    with store.writing():
        store.set_config(msgspec.to_builtins(plan.config))
        # Before anything else, so that a run that is stopped again never shows old and new scores side by side.
        depends = Dependence(hub, plan)
        store.show_scores(depends.bases())
        for number, name in enumerate(plan.config.models):
            runtime = Runtime(batch_size=plan.config.batch_size)
            model = hub.load_model(name, device=plan.config.device, runtime=runtime)
            Target.parse(plan.config.target, model.classes)
            _Run(hub, plan, depends, store, model, totals, retry, watch, number).work()
    totals.seconds = time.perf_counter() - started
    return totals


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a run takes, measured on its first readable image.

    Attributes:
        images: Number of images.
        forward_passes: Forward rows for all of them.
        backward_passes: Backward rows.
        seconds: Wall time.
        parts: (model, what, forward passes, backward passes, seconds) for one image.
        unknown: What failed on that image, with the reason; it is not counted.
    """

    images: int
    forward_passes: int
    backward_passes: int
    seconds: float
    parts: Sequence[tuple[str, str, float, float, float]]
    unknown: Mapping[str, str] = field(default_factory=dict)


def estimate(hub: Hub, plan: Plan, store: RunStore) -> Cost:
    """Do the first readable image of a plan and multiply.

    Nothing is guessed: the passes are counted while the real work is done, in a store of its own.
    """
    readable = next((source for source in plan.images if _readable(source)), None)
    if readable is None:
        raise InputError("none of the images can be read")
    first = Plan(**{**plan.__dict__, "images": [readable, *(p for p in plan.images if p != readable)]})
    totals, depends = Totals(), Dependence(hub, first)
    with store.writing():
        for number, name in enumerate(plan.config.models):
            model = hub.load_model(name, device=plan.config.device, runtime=Runtime(batch_size=plan.config.batch_size))
            _Run(hub, first, depends, store, model, totals, True, None, number).work(limit=1)
    rows = store.rows()
    # A metric that refuses the first image may well take others: that it costs nothing would be a guess.
    unknown = {row.metric if row.record else row.explainer: row.error for row in rows if row.error}
    unknown |= {Path(source).name: reason for source, reason in store.failed_images().items()}
    counted = [row for row in rows if not row.error]
    parts = [(r.model, f"{r.metric} of {r.explainer}", r.forward_passes, r.backward_passes, r.seconds) for r in counted]
    for row in {row.key: row for row in rows if row.record}.values():
        record = row.record
        spent = (record.get("forward_passes", 0), record.get("backward_passes", 0), record.get("seconds", 0.0))
        parts.append((row.model, f"explaining with {row.explainer}", *spent))
    count = len(plan.images)
    return Cost(
        images=count,
        forward_passes=round(sum(part[2] for part in parts) + len(plan.config.models)) * count,
        backward_passes=round(sum(part[3] for part in parts)) * count,
        seconds=sum(part[4] for part in parts) * count,
        parts=parts,
        unknown=unknown,
    )


class _Run:
    """One model over all images."""

    def __init__(
        self,
        hub: Hub,
        plan: Plan,
        depends: Dependence,
        store: RunStore,
        model: Model,
        totals: Totals,
        retry: bool,
        watch: Callable[[str, int, int], None] | None,
        number: int,
    ) -> None:
        self._hub, self._plan, self._store, self._model = hub, plan, store, model
        self._totals, self._retry, self._watch = totals, retry, watch
        self._depends = depends
        self._metrics = {(metric.name, canonical(with_files(metric.parameters))): metric for metric in plan.metrics}
        self._parameters = [with_files(explainer.parameters) for explainer in plan.explainers]
        self._number = number
        self._structure = model.structure_hash
        self._done = 0
        self._all = len(plan.config.models) * len(plan.images) * len(plan.explainers)
        self._inputs: OrderedDict[str, tuple[Tensor, Tensor, Geometry]] = OrderedDict()

    def work(self, limit: int | None = None) -> None:
        homes = self._show_current()
        for position, source in enumerate(self._plan.images[:limit]):
            self._done = (self._number * len(self._plan.images) + position) * len(self._plan.explainers)
            self._tell(Path(source).name)
            try:
                image = load_image(source)
            except XaihubError as error:
                self._totals.failed += 1
                self._store.add_image(source, position, sha256=None, error=str(error))
                continue
            if self._number == 0:  # a later model does not take back what an earlier one found wrong
                self._store.add_image(source, position, sha256=image.sha256)
            scene: Scene | None = None
            wanted = [(*score, basis) for score, basis in self._depends.basis(source).items()]
            for explainer, parameters in zip(self._plan.explainers, self._parameters, strict=True):
                self._tell(f"{Path(source).name}: {explainer.name}")
                key = self._key(source, image.sha256, explainer, parameters)
                # A photo that is in the run twice is explained and scored once, beside the first one's neighbours.
                twice = homes.get(key.digest, source) != source
                missing = [] if twice else self._store.missing_scores(key, wanted, retry=self._retry)
                self._totals.kept += len(wanted) - len(missing)
                if missing or not (twice or self._store.has_explanation(key, retry=self._retry)):
                    try:
                        scene = scene or self._scene(image, position)
                    except XaihubError as error:
                        # Its mask is no image, or the model sees the very class it is to be contrasted with.
                        self._totals.failed += 1
                        reason = f"{self._model.name}: {error}"
                        self._store.add_image(source, position, sha256=image.sha256, error=reason)
                        break
                    self._judge(key, source, image, scene, explainer, missing)
                self._done += 1
        if limit is None:
            self._done = (self._number + 1) * len(self._plan.images) * len(self._plan.explainers)
            self._tell(self._model.name)

    def _show_current(self) -> dict[str, str]:
        """Show of this model what the plan asks for; return the first image of each explanation."""
        wanted: dict[str, tuple[str, str, str]] = {}
        for source in self._plan.images:
            checksum = self._depends.checksum(source)
            for explainer, parameters in zip(self._plan.explainers, self._parameters, strict=True):
                if checksum:
                    digest = self._key(source, checksum, explainer, parameters).digest
                    wanted.setdefault(digest, (source, explainer.name, canonical(parameters)))
        self._store.show_explanations(self._model.name, wanted)
        self._store.show_scores(self._depends.bases())  # once more: an explanation may have got another path
        return {digest: slot[0] for digest, slot in wanted.items()}

    def _judge(
        self,
        key: Key,
        source: str,
        image: SourceImage,
        scene: Scene,
        explainer: Explainer,
        missing: Sequence[tuple[str, str, str]],
    ) -> None:
        explanation = self._store.explanation(key) or self._explain(key, source, image, scene, explainer)
        if explanation is None:
            for name, parameters, basis in missing:
                self._store.add_score(key, name, parameters, basis=basis, error="there is no explanation to judge")
            return
        case = Case(scene=scene, explanation=explanation, explainer=explainer, seed=self._plan.config.seed)
        for name, parameters, basis in missing:
            self._tell(f"{Path(source).name}: {name} of {explainer.name}")
            started = time.perf_counter()
            try:
                measured, counts = self._metrics[name, parameters].measure(case)
            except OutputError:
                raise
            except XaihubError as error:
                self._totals.failed += 1
                self._store.add_score(key, name, parameters, basis=basis, error=str(error))
                continue
            self._store.add_score(
                key,
                name,
                parameters,
                basis=basis,
                value=measured.value,
                details=measured.details,
                curve=measured.curve,
                forward_passes=counts.forward_passes,
                backward_passes=counts.backward_passes,
                seconds=time.perf_counter() - started,
            )
            self._totals.scores += 1
            self._totals.forward_passes += counts.forward_passes
            self._totals.backward_passes += counts.backward_passes

    def _explain(
        self, key: Key, source: str, image: SourceImage, scene: Scene, explainer: Explainer
    ) -> Explanation | None:
        wanted = Target(
            index=int(scene.target.index[0]),
            against=None if scene.target.against is None else Target(index=int(scene.target.against[0])),
        )
        _, _, geometry = self._input(image.source, image)
        try:
            found = explainer.explain(self._model, scene.image[None], wanted, seed=self._plan.config.seed)[0]
        except XaihubError as error:
            self._totals.failed += 1
            self._store.add_explanation(key, source, None, error=str(error))
            return None
        explanation = found.with_image(image, geometry)
        self._store.add_explanation(key, source, explanation)
        self._totals.explanations += 1
        self._totals.forward_passes += round(found.metadata["forward_passes"])
        self._totals.backward_passes += round(found.metadata["backward_passes"])
        return explanation

    def _key(self, source: str, sha256: str, explainer: Explainer, parameters: Mapping[str, Any]) -> Key:
        label = self._plan.labels.get(source)
        return Key(
            image=sha256,
            model=self._model.name,
            weights=self._model.weights_hash,
            structure=self._structure,
            preprocessing=self._model.preprocessing.description,
            explainer=explainer.name,
            parameters=parameters,
            target=str(self._plan.config.target if label is None else label),
            seed=self._plan.config.seed,
            code=code(self._hub, explainer),
            control=explainer.name in self._plan.controls,
        )

    def _scene(self, photo: SourceImage, position: int) -> Scene:
        image, logits, _ = self._input(photo.source, photo)
        label = self._plan.labels.get(photo.source)
        wanted = (
            Target(index=label) if label is not None else Target.parse(self._plan.config.target, self._model.classes)
        )
        return Scene(
            model=self._model,
            image=image,
            logits=logits,
            target=wanted.resolve(logits[None]),
            truth=self._truth(photo),
            pool=_Pool(self, position),
        )

    def _input(self, source: str, photo: SourceImage | None = None) -> tuple[Tensor, Tensor, Geometry]:
        """Return a photo's input, logits and geometry; the last few are kept, as the pool asks for neighbours."""
        if source not in self._inputs:
            image, geometry = self._model.prepare((photo or load_image(source)).rgb)
            self._inputs[source] = (image, self._model.predict(image[None])[0], geometry)
            self._totals.forward_passes += 1
            if len(self._inputs) > INPUTS:
                self._inputs.popitem(last=False)
        self._inputs.move_to_end(source)
        return self._inputs[source]

    def neighbours(self, position: int) -> Iterator[tuple[Tensor, int]]:
        """Yield the next readable images, in a circle, with their predicted classes."""
        for source in neighbours(self._plan.images, position):
            try:
                image, logits, _ = self._input(source)
            except XaihubError:
                continue
            yield image, int(logits.argmax())

    def _truth(self, photo: SourceImage) -> Tensor | None:
        from PIL import Image, ImageDraw

        source = photo.source
        mask = Image.new("L", photo.rgb.size)
        blank = mask.copy()
        if source in self._plan.masks:
            mask = load_image(self._plan.masks[source]).rgb.convert("L").resize(photo.rgb.size)
        elif source in self._plan.boxes:
            for box in self._plan.boxes[source]:
                ImageDraw.Draw(mask).rectangle(box, fill=255)
        else:
            return None
        # What is bright without a mask was added by the model's own cropping, which pads small images.
        return self._bright(mask) & ~self._bright(blank)

    def _bright(self, mask: PILImage) -> Tensor:
        """Send a mask through the model's own scaling and cropping, as the photo goes; tell where it is white."""
        inputs, _ = self._model.preprocessing(mask.convert("RGB"))
        return self._model.preprocessing.denormalise(inputs)[0] > 0.5

    def _tell(self, text: str) -> None:
        if self._watch is not None:
            self._watch(text, self._done, self._all)


class _Pool(Sequence[tuple[Tensor, int]]):
    """The images that a scene may be combined with; loaded when first looked at."""

    def __init__(self, run: _Run, position: int) -> None:
        self._run, self._position = run, position
        self._found: list[tuple[Tensor, int]] | None = None

    def _all(self) -> list[tuple[Tensor, int]]:
        if self._found is None:
            self._found = list(self._run.neighbours(self._position))
        return self._found

    def __len__(self) -> int:
        return len(self._all())

    def __getitem__(self, index):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN204
        return self._all()[index]


def _readable(source: str) -> bool:
    try:
        load_image(source)
    except XaihubError:
        return False
    return True
