"""The worker process: answers requests for explanations and scores (see `xaihub.evaluation.isolation`)."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from xaihub.api.rank import Photos
from xaihub.errors import XaihubError
from xaihub.evaluation.isolation import error_of, packed, settle_in, unpacked
from xaihub.explainers.budget import budgeted
from xaihub.explainers.explainer import Explainer
from xaihub.explainers.explanation import Explanation
from xaihub.explainers.target import Target
from xaihub.hub import Hub
from xaihub.hub.worker import connected, serve
from xaihub.metric import Case, Scene
from xaihub.models.model import Model
from xaihub.models.passes import Runtime
from xaihub.models.process import fenced
from xaihub.notices.process import left_over
from xaihub.plugin_tools.onefile import register_file
from xaihub.records import canonical

Tensors = dict[str, Tensor]


class Server:
    """What a worker keeps between requests: a hub with its models, and the last scene and case."""

    def __init__(self) -> None:
        """Load nothing yet."""
        self._hub: Hub
        self._key = ""  # what the hub depends on
        self._models: dict[str, Model] = {}
        self._case: tuple[int, Case] | None = None
        self._threads: set[threading.Thread] = set()

    def __call__(self, request: bytes) -> bytes:
        """Return the packed answer to a packed request."""
        try:
            answer, found = self.answer(*unpacked(request))
        except XaihubError as error:
            answer, found = error_of(error), {}
        # A thread that a plugin left behind may change anything later.
        spoilt = any(model.spoilt for model in self._models.values())
        answer["last"] = spoilt or bool(left_over(self._threads))
        return packed(answer, found)

    def answer(self, message: Mapping[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
        """Return the answer to a request.

        Raises:
            XaihubError: A method refuses or fails.
        """
        loading = message["do"] == "load"
        if loading:
            settle_in(message["around"])
        model = self._model(message["model"])
        if loading:
            self._case = None  # whoever asks begins to count cases anew
            same = self._same(model, message)
            if not same:  # its file may have changed since
                self._models.clear()
                same = self._same(self._model(message["model"]), message)
            return {"same": same}, {}
        with model.counting() as spent:
            do = {"explain": self._explain, "score": self._score, "rank": self._rank}[message["do"]]
            found, more = do(model, message, tensors)
        return {**found, "spent": [spent.forward_passes, spent.backward_passes]}, more

    def _model(self, asked: Mapping[str, Any]) -> Model:
        key = canonical([asked["files"], sys.path, os.environ.get("XAIHUB_LOAD_PLUGINS")])
        if key != self._key:
            hub = Hub()
            for file in asked["files"]:
                register_file(hub.host, file)
            self._key, self._hub, self._models, self._threads = key, hub, {}, set(threading.enumerate())
        key = canonical(asked)
        if key not in self._models:
            arguments = dict(asked["arguments"])
            model = self._hub.load_model(arguments.pop("name"), runtime=Runtime(**asked["runtime"]), **arguments)
            model.name = asked["shown"]
            self._models[key] = model
        return self._models[key]

    def _same(self, model: Model, wanted: Mapping[str, Any]) -> bool:
        """Whether model and methods are those of the process that asks."""
        registries: dict[str, Any] = {
            "explainer": (self._hub.explainers, self._hub.get_explainer),
            "global explainer": (self._hub.global_explainers, self._hub.get_global_explainer),
            "metric": (self._hub.metrics, self._hub.get_metric),
        }
        for noun, name, origin in wanted["methods"]:
            registry, make = registries[noun]
            if registry.find(name) is None or make(name).origin.record() != origin:
                return False
        hashes = (model.weights_hash, model.structure_hash)
        return hashes == (wanted.get("weights", hashes[0]), wanted.get("structure", hashes[1]))

    def _explainer(self, named: Sequence[Any]) -> Explainer:
        explainer = self._hub.get_explainer(named[0], **named[1])
        return budgeted([explainer], named[2] if len(named) > 2 else None)[0]

    def _explain(self, model: Model, message: Mapping[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
        explainer, target = self._explainer(message["explainer"]), _target(message["target"])
        inputs, logits = _on(model, tensors["inputs"]), _on(model, tensors.get("logits"))
        with fenced(explainer):
            (found,) = explainer.explain(model, inputs, target, seed=message["seed"], logits=logits)
            return {"record": found.to_dict()}, found.tensors()

    def _rank(self, model: Model, message: Mapping[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
        explainer = self._hub.get_global_explainer(message["explainer"][0], **message["explainer"][1])
        photos = Photos(model=model, sources=message["sources"], page=message["page"])
        with fenced(explainer):
            found = explainer.explain(model, photos, tensors.get("labels"), seed=message["seed"])
            return {"record": found.to_dict()}, {}

    def _score(self, model: Model, message: Mapping[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
        metric = self._hub.get_metric(message["metric"][0], **message["metric"][1])
        pool = [(_on(model, tensors[f"pool.{place}"]), label) for place, label in enumerate(message["pool"])]
        with fenced(metric):
            measured, charged = metric.measure(self._known_case(model, message, tensors, pool))
        return {
            "value": measured.value,
            "curve": measured.curve,
            "details": measured.details,
            "charged": [charged.forward_passes, charged.backward_passes],
        }, {}

    def _known_case(self, model: Model, message: Mapping[str, Any], tensors: Tensors, pool: Any) -> Case:
        """Return the case, with what is remembered of it or of its scene."""
        number, last = self._case or (-1, None)
        if last is None or number != message["case"]:
            logits = _on(model, tensors["logits"])
            scene = Scene(
                model=model,
                image=_on(model, tensors["image"]),
                logits=logits,
                target=_target(message["target"]).resolve(logits[None]),
                truth=tensors.get("truth"),
            )
            if last is not None and message["same_scene"]:
                scene.memory = last.scene.memory
            maps = {name[4:]: tensor for name, tensor in tensors.items() if name.startswith("map.")}
            last = Case(
                scene=scene,
                explanation=Explanation.from_dict(message["record"], maps),
                explainer=message["explainer"] and self._explainer(message["explainer"]),
                seed=message["seed"],
            )
            self._case = (message["case"], last)
        return replace(last, scene=replace(last.scene, pool=pool))


def _target(known: Mapping[str, Any]) -> Target:
    against = known["against"] and _target(known["against"])
    return Target(index=known["index"], rank=known["rank"], against=against)


def _on(model: Model, tensor: Any) -> Any:
    return None if tensor is None else tensor.to(model.device)


if __name__ == "__main__":
    pipe, parent = connected()
    serve(pipe, Server(), parent=parent)
