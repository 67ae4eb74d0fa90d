"""The worker process: answers requests for explanations and scores (see `xaihub.evaluation.worker`)."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any

from torch import Tensor

from xaihub.errors import XaihubError
from xaihub.evaluation.worker import apply_settings, error_of, packed, unpacked
from xaihub.explainers.explainer import Explainer
from xaihub.explainers.explanation import Explanation
from xaihub.explainers.target import Target
from xaihub.hub import Hub
from xaihub.metric import Case, Scene
from xaihub.models.model import Model
from xaihub.models.passes import Runtime
from xaihub.models.process import fenced, left_over
from xaihub.plugin_tools.onefile import register_file
from xaihub.records import canonical

Tensors = dict[str, Tensor]


class Server:
    """What a worker keeps between requests: the hub, the models, and the last scene and case."""

    def __init__(self, hub: Hub) -> None:
        """Load nothing yet."""
        self._hub = hub
        self._models: dict[str, Model] = {}
        self._case: tuple[int, Case] | None = None

    @property
    def spoilt(self) -> bool:
        """Whether a model was changed and cannot be restored."""
        return any(model.spoilt for model in self._models.values())

    def answer(self, message: Mapping[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
        """Return the answer to a request.

        Raises:
            XaihubError: A method refuses or fails.
        """
        model = self._model(message["model"])
        if message["do"] == "load":
            return {"same": self._same(model, message)}, {}
        with model.counting() as spent:
            found, more = (self._explain if message["do"] == "explain" else self._score)(model, message, tensors)
        return {**found, "spent": [spent.forward_passes, spent.backward_passes]}, more

    def _model(self, asked: Mapping[str, Any]) -> Model:
        key = canonical(asked)
        if key not in self._models:
            arguments = dict(asked["arguments"])
            model = self._hub.load_model(arguments.pop("name"), runtime=Runtime(**asked["runtime"]), **arguments)
            model.name = asked["shown"]
            self._models[key] = model
        return self._models[key]

    def _same(self, model: Model, wanted: Mapping[str, Any]) -> bool:
        """Whether model and methods are those of the process that asks."""
        registries: dict[str, Any] = {"explainer": self._hub.explainers, "metric": self._hub.metrics}
        makers: dict[str, Any] = {"explainer": self._hub.get_explainer, "metric": self._hub.get_metric}
        for noun, name, origin in wanted["methods"]:
            if registries[noun].find(name) is None or makers[noun](name).origin.record() != origin:
                return False
        hashes = (model.weights_hash, model.structure_hash)
        return hashes == (wanted.get("weights", hashes[0]), wanted.get("structure", hashes[1]))

    def _explainer(self, named: tuple[str, Mapping[str, Any]]) -> Explainer:
        return self._hub.get_explainer(named[0], **named[1])

    def _explain(self, model: Model, message: Mapping[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
        explainer, target = self._explainer(message["explainer"]), _target(message["target"])
        inputs, logits = _on(model, tensors["inputs"]), _on(model, tensors.get("logits"))
        with fenced(explainer):
            (found,) = explainer.explain(model, inputs, target, seed=message["seed"], logits=logits)
            return {"record": found.to_dict()}, found.tensors()

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


def serve(pipe: Connection) -> None:
    """Answer requests until the other end closes."""
    own = os.getpid()
    settings, _ = unpacked(pipe.recv_bytes())
    apply_settings(settings)
    hub = Hub()
    for file in settings["files"]:
        register_file(hub.host, file)
    server = Server(hub)
    pipe.send_bytes(packed({}, {}))
    threads = set(threading.enumerate())
    while True:
        message, tensors = unpacked(pipe.recv_bytes())
        try:
            answer, found = server.answer(message, tensors)
        except XaihubError as error:
            answer, found = error_of(error), {}
        if os.getpid() != own:  # a plugin forked, and both processes came back
            os._exit(1)
        # A thread that a plugin left behind may change anything later.
        answer["last"] = server.spoilt or bool(left_over(threads))
        pipe.send_bytes(packed(answer, found))


def _end_with(parent: int) -> None:
    """End this process, whatever it does, when the one that started it has ended."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def attended(serve: Callable[[Connection], None]) -> None:
    """Call `serve` with the pipe whose number is the first argument, until the process of the second one has ended.

    What plugins print goes to stderr.
    """
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks
    threading.Thread(target=_end_with, args=(int(sys.argv[2]),), daemon=True).start()
    try:
        serve(Connection(int(sys.argv[1])))
    except (EOFError, OSError):
        os._exit(0)


if __name__ == "__main__":
    attended(serve)
