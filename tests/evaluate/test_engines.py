"""Engines: other processes compute the same rows, and what happens to them costs only time."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.evaluate import toys_elsewhere
from tests.evaluate.toys import config, values
from xaihub.errors import EngineError, MissingExtra, ParameterError
from xaihub.evaluation.engine import Engine, make_engine
from xaihub.evaluation.local import LocalEngine
from xaihub.evaluation.plan import make_plan
from xaihub.evaluation.run import evaluate
from xaihub.evaluation.store import RunStore
from xaihub.hub import Hub
from xaihub.hub.host import PluginHost
from xaihub.plugin_tools.onefile import register_file

pytestmark = pytest.mark.skipif(os.name == "nt", reason="workers are started on POSIX systems")
METRICS = ["toy_mean", "toy_drawn", "toy_pool"]


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Hub:
    """A hub that worker processes can build again."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    monkeypatch.setenv(toys_elsewhere.FLAG, str(tmp_path / "flag"))
    host = PluginHost(entry_points=[])
    register_file(host, toys_elsewhere.__file__)
    return Hub(host)


def done(hub: Hub, folder: Path, engine: Engine | None, photos: Path, **changes: Any) -> tuple[list[Any], Any]:
    """Run, and return the rows with what they say of their maps."""
    with RunStore(folder, create=True) as store:
        totals = evaluate(hub, make_plan(hub, config(photos, **changes)), store, timeout=0, engine=engine)
        maps = [Path(file).read_bytes() for file in sorted(store.folder.glob("maps/*/*"))]
        return [*values(store), maps, sorted(store.failed_images())], totals


def test_a_worker_process_gives_the_rows_and_maps_of_this_process_bit_for_bit(
    elsewhere: Hub, photos: Path, tmp_path: Path
) -> None:
    """It is killed on its first image, which another one computes."""
    chosen = {"explainers": ["killed_once", "toy_refusing"], "models": ["toy", "toy2"], "metrics": METRICS}
    worker, spread = done(elsewhere, tmp_path / "worker", LocalEngine(jobs=1), photos, **chosen)
    assert (tmp_path / "flag").exists()
    here, whole = done(elsewhere, tmp_path / "here", None, photos, **chosen)
    assert worker == here
    assert vars(spread) | {"seconds": 0} == vars(whole) | {"seconds": 0}


@pytest.mark.slow
def test_an_image_that_ends_its_worker_costs_one_record_and_a_second_run_does_nothing(
    elsewhere: Hub, photos: Path, tmp_path: Path
) -> None:
    Image.new("RGB", (24, 20), (9, 9, 9)).save(photos / "1poison.png")
    engine = make_engine(elsewhere, jobs=2)
    with RunStore(tmp_path / "run", create=True) as store:
        plan = make_plan(elsewhere, config(photos, explainers=["poisoned"], metrics=METRICS))
        totals = evaluate(elsewhere, plan, store, timeout=0, engine=engine)
        ((source, reason),) = store.failed_images().items()
        assert source.endswith("1poison.png")
        assert reason == "ended the worker process (SIGKILL)"
        assert totals.failed == 1
        assert len(store.rows()) == 4 * 2 * 3
        (photos / "1poison.png").unlink()
        plan = make_plan(elsewhere, config(photos, explainers=["poisoned"], metrics=["toy_mean", "toy_drawn"]))
        again = evaluate(elsewhere, plan, store, timeout=0, engine=engine)
        assert (again.scores, again.explanations, again.kept) == (0, 0, 4 * 2 * 2)


class Counting(Engine):
    """A third engine: one worker, in this process."""

    def run(self, start: Any, tasks: Any) -> Iterator[Any]:  # type: ignore[override]
        do = start()
        yield from ((task, do(task)) for task in tasks)


def test_an_engine_is_one_small_class(elsewhere: Hub, photos: Path, tmp_path: Path) -> None:
    here, _ = done(elsewhere, tmp_path / "here", None, photos)
    there, _ = done(elsewhere, tmp_path / "there", Counting(), photos)
    assert here == there


def test_what_exists_in_this_process_only_is_refused(hub: Hub, photos: Path, store: RunStore) -> None:
    with pytest.raises(EngineError, match="'toy_gradient' exists in this process only"):
        evaluate(hub, make_plan(hub, config(photos)), store, engine=Counting())


def test_engines_are_chosen_by_name(elsewhere: Hub) -> None:
    assert make_engine(elsewhere) is make_engine(elsewhere, jobs=1) is None
    with pytest.raises(ParameterError, match="takes no address"):
        make_engine(elsewhere, address="auto")


class NoRay:
    """Finds no Ray."""

    def find_spec(self, name: str, *_: object) -> None:
        if name == "ray":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def test_without_ray_the_error_says_what_to_install(elsewhere: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    import xaihub_ray

    elsewhere.host.register(xaihub_ray, name="ray")
    for name in [name for name in sys.modules if name.partition(".")[0] in ("ray", "xaihub_ray")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [NoRay(), *sys.meta_path])
    with pytest.raises(MissingExtra, match="needs 'ray'") as caught:
        make_engine(elsewhere, "ray")
    assert "xaihub[ray]" in str(caught.value)
