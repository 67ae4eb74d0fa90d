"""Ray: the same rows, whatever happens to its workers and nodes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.evaluate import toys_elsewhere
from tests.evaluate.toys import config, values
from xaihub.errors import EngineError
from xaihub.evaluation.engine import Engine
from xaihub.evaluation.plan import make_plan
from xaihub.evaluation.run import Totals, evaluate
from xaihub.evaluation.store import RunStore
from xaihub.hub import Hub
from xaihub.hub.host import PluginHost
from xaihub.plugin_tools.onefile import register_file

ray = pytest.importorskip("ray", reason="needs xaihub[ray]")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Hub:
    """A hub that workers can build again."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    monkeypatch.setenv(toys_elsewhere.FLAG, str(tmp_path / "flag"))
    monkeypatch.setenv("RAY_raylet_start_wait_time_s", "300")  # the machine may be busy
    host = PluginHost(entry_points=[])
    register_file(host, toys_elsewhere.__file__)
    return Hub(host)


@pytest.fixture
def cluster(elsewhere: Hub) -> Iterator[Any]:
    """A cluster on this machine: a head without CPUs, and two nodes with one CPU each."""
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    nodes = [made.add_node(num_cpus=1) for _ in range(2)]
    ray.init(address=made.address, log_to_driver=False)
    try:
        yield made, nodes
    finally:
        ray.shutdown()
        made.shutdown()


def engine(**settings: Any) -> Engine:
    from xaihub_ray.engine import RayEngine

    return RayEngine(device="cpu", **settings)


def done(hub: Hub, folder: Path, engine: Engine | None, photos: Path, **changes: Any) -> tuple[list[Any], Totals, Any]:
    with RunStore(folder, create=True) as store:
        totals = evaluate(hub, make_plan(hub, config(photos, **changes)), store, timeout=0, engine=engine)
        return values(store), totals, store.failed_images()


def test_ray_gives_the_rows_of_this_process_whatever_happens_to_its_workers(
    elsewhere: Hub, photos: Path, tmp_path: Path
) -> None:
    """One worker is killed once, and one image ends every worker that tries it."""
    chosen: dict[str, Any] = {"explainers": ["killed_once", "poisoned"], "models": ["toy", "toy2"]}
    (tmp_path / "flag").touch()
    here, _, _ = done(elsewhere, tmp_path / "here", None, photos, **{**chosen, "explainers": ["killed_once"]})
    (tmp_path / "flag").unlink()
    Image.new("RGB", (24, 20), (9, 9, 9)).save(photos / "poison.png")
    there, totals, failed = done(elsewhere, tmp_path / "there", engine(jobs=2), photos, metrics=["toy_mean"], **chosen)
    assert (tmp_path / "flag").exists()
    assert [row for row in there if row[2] == "killed_once"] == [
        row for row in here if row[2:4] == ("killed_once", "toy_mean")
    ]
    ((source, reason),) = failed.items()
    assert source.endswith("poison.png")
    assert "ended the worker process" in reason
    assert totals.scores == 2 * 4 * 3


@pytest.mark.timeout(600)
def test_nodes_that_come_and_go_are_used_and_survived(
    elsewhere: Hub, cluster: Any, photos: Path, tmp_path: Path
) -> None:
    made, nodes = cluster
    for number in range(96):
        Image.effect_noise((24, 20), 50 + number).convert("RGB").save(photos / f"more{number}.png")
    (tmp_path / "flag").touch()
    chosen: dict[str, Any] = {"explainers": ["slow_gradient"], "metrics": ["toy_mean", "toy_drawn"]}

    def places() -> set[str]:
        return set((tmp_path / "flag").read_text().split())

    def change() -> None:
        while len(places()) < 2:  # until both work
            time.sleep(0.2)
        made.remove_node(nodes[0])
        added.append(made.add_node(num_cpus=1))

    added: list[Any] = []
    thread = threading.Thread(target=change, daemon=True)
    thread.start()
    there, totals, failed = done(elsewhere, tmp_path / "there", engine(), photos, **chosen)
    thread.join()
    assert not failed
    assert totals.scores == 100 * 2 * 2
    assert places() == {node.node_id for node in [*nodes, *added]}
    here, _, _ = done(elsewhere, tmp_path / "here", None, photos, **chosen)
    assert there == here


def test_a_cluster_that_does_not_start_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def late(*_: Any, **__: Any) -> None:
        raise Exception("The current node timed out during startup.\nMore about it.")  # noqa: TRY002 - as Ray does

    monkeypatch.setattr(ray, "init", late)
    with pytest.raises(EngineError, match="cannot use Ray at 'this machine': The current node timed out") as caught:
        next(iter(engine(jobs=1).run(lambda: None, [])))  # type: ignore[arg-type, return-value]
    assert "\n" not in str(caught.value)


# A driver of a cluster of its own, which the test kills; a second one goes on.
DRIVER = """
import sys
from pathlib import Path

from tests.evaluate import toys_elsewhere
from tests.evaluate.test_ray import done, engine
from xaihub.hub import Hub
from xaihub.hub.host import PluginHost
from xaihub.plugin_tools.onefile import register_file

host = PluginHost(entry_points=[])
register_file(host, toys_elsewhere.__file__)
done(Hub(host), Path(sys.argv[2]), engine(jobs=2), Path(sys.argv[1]), explainers=["slow_gradient"])
"""


def test_a_driver_that_is_killed_is_resumed_without_loss(elsewhere: Hub, photos: Path, tmp_path: Path) -> None:
    for number in range(4):
        Image.effect_noise((24, 20), 50 + number).convert("RGB").save(photos / f"more{number}.png")
    run, flag = tmp_path / "run", tmp_path / "flag"
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, str(photos), str(run)], start_new_session=True)
    while not flag.exists() or len(flag.read_text().split()) < 2:  # until some images are explained
        assert driver.poll() is None
        time.sleep(0.05)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    plan = make_plan(elsewhere, config(photos, explainers=["slow_gradient"]))
    with RunStore(run) as store:
        before = len(store.rows())
        totals = evaluate(elsewhere, plan, store, timeout=0, engine=engine(jobs=2))
        resumed = values(store)
    here, _, _ = done(elsewhere, tmp_path / "here", None, photos, explainers=["slow_gradient"])
    assert 0 < before < len(here)
    assert totals.kept == before
    assert totals.scores == len(here) - before
    assert resumed == here
