"""What a run keeps of how its passes are made: batch sizes are reused, and precisions are not mixed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.evaluate.toys import config
from tests.test_tuning import search
from xaihub.api.evaluate import planned
from xaihub.errors import ParameterError
from xaihub.evaluation import run as running
from xaihub.evaluation.isolation import unpacked
from xaihub.evaluation.local import LocalEngine
from xaihub.evaluation.plan import make_plan
from xaihub.evaluation.store import RunStore
from xaihub.hub import Hub
from xaihub.models import cache
from xaihub.models.tuning import Tuning


def recalled() -> tuple[int, int]:
    return Tuning("key", about="small", first=4, sizes=range(1, 65), threads=(1,)).now


def test_a_resumed_run_and_its_workers_reuse_the_batch_size_that_was_found(
    hub: Hub, photos: Path, store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XAIHUB_TUNING", "1")
    plan, seen = make_plan(hub, config(photos)), []

    def first(*_: object) -> None:
        search({(2, 1): 1.0, (4, 1): 3.0, (8, 1): 4.0, (1, 1): 2.0})
        raise KeyboardInterrupt  # what was found is kept all the same

    monkeypatch.setattr(running.Run, "work", first)
    with pytest.raises(KeyboardInterrupt):
        running.evaluate(hub, plan, store)
    cache.clear()
    assert recalled() == (4, 1)  # outside the run it has to be found again
    monkeypatch.setattr(running.Run, "work", lambda *_: seen.append(recalled()))
    running.evaluate(hub, plan, store)
    assert seen == [(2, 1)]
    monkeypatch.setattr(running, "_elsewhere", lambda _origin: True)
    message, _ = unpacked(running.settings_of_workers(hub, plan, [], LocalEngine(jobs=1), 0.0, store.choices))
    assert message["choices"] == store.choices != {}


def test_a_resumed_run_keeps_precision_and_backend(hub: Hub, photos: Path, store: RunStore) -> None:
    running.evaluate(hub, make_plan(hub, config(photos)), store)
    store.close()

    def resumed(**scalars: str) -> object:
        lists = dict.fromkeys(("models", "explainers", "metrics"), ())
        run = {"config": None, "resume": store.folder, "no_controls": False}
        return planned(hub, [], lists=lists, params=(), scalars=scalars, **run)[0]

    assert resumed(precision="f32")
    with pytest.raises(ParameterError, match="computed with precision 'f32', so 'bf16' would mix two"):
        resumed(precision="bf16")
    with pytest.raises(ParameterError, match="'openvino' would mix two"):
        resumed(backend="openvino")
