"""Forty plugins that misbehave: each costs its own result, is named, and changes nobody else's result."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from torch import nn

from tests import hostile_plugins as plugins
from tests import hostile_processes, hostile_scores
from tests.networks import model as model_of
from tests.networks import noise
from xaihub import Explainer, Metric, Model
from xaihub.api.explain import Outcome, explain_many
from xaihub.cli import cli
from xaihub.errors import ModelError, PluginError
from xaihub.evaluation.isolation import Isolation
from xaihub.hub import Hub
from xaihub.hub.host import PluginHost
from xaihub.plugin_tools.onefile import register_file
from xaihub.specs import Origin

FILES = FILE, KILLING, SCORING = [str(Path(one.__file__)) for one in (plugins, hostile_processes, hostile_scores)]
PLUGINS = [part for file in FILES for part in ("--plugin", file)]
SLOW = pytest.mark.slow
GOOD = ("good", "good_too")


def hub_of(*files: str) -> Hub:
    host = PluginHost(entry_points=[], environ={})
    for file in files:
        register_file(host, file)
    return Hub(host)


def classes_of(base: type, file: str = FILE) -> list[str]:
    hub = hub_of(file)
    return (hub.explainers if base is Explainer else hub.metrics).names()


CONTAINED = [name for name in classes_of(Explainer) if name not in GOOD]
KILLERS = classes_of(Explainer, KILLING)
HOSTILE = [*CONTAINED, *KILLERS]
METRICS = [name for name in classes_of(Metric, SCORING) if name != "good_mean"]
# Those that raise, refuse or return what cannot be used change nothing.
HARMLESS = {"refuses": "not today", "returns_nan": "NaN", "returns_nonsense": "", "raises_error": "ValueError"}


@pytest.fixture
def hub() -> Hub:
    return hub_of(*FILES)


@pytest.fixture
def photo(tmp_path: Path) -> str:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return str(tmp_path / "photo.png")


def outcomes(
    hub: Hub, names: list[str], photo: str, *, timeout: float = 0, model: Model | None = None
) -> list[Outcome]:
    explainers = [hub.get_explainer(name) for name in names]
    models = [model or hub.load_model("tiny", device="cpu")]
    return list(explain_many(models, explainers, [photo], timeout=timeout))


def contents(outcome: Outcome) -> tuple[bytes, str]:
    """Return the map as bytes and the record without what depends on the clock."""
    assert outcome.explanation is not None, outcome.error
    record = {key: value for key, value in outcome.explanation.to_dict().items() if key != "seconds"}
    return outcome.explanation.values.numpy().tobytes(), json.dumps(record, sort_keys=True)


def process() -> tuple[object, ...]:
    return (
        torch.get_num_threads(), torch.get_default_dtype(), torch.zeros(1).device, sys.getrecursionlimit(), Path.cwd(),
        torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision(), np.geterr(), sys.stdout,
        torch.get_rng_state().numpy().tobytes(), random.getstate(), np.random.get_state()[1].tobytes(),
        torch.nn.functional.batch_norm, nn.ReLU6.forward, len(nn.modules.module._global_forward_hooks),
        signal.getsignal(signal.SIGINT),
    )  # fmt: skip


def test_there_are_forty() -> None:
    assert len(HOSTILE) + len(METRICS) >= 40


@pytest.mark.parametrize("name", CONTAINED)
def test_each_alone_costs_its_own_result_and_nothing_else(hub: Hub, photo: str, name: str) -> None:
    undisturbed = [contents(one) for one in outcomes(hub, list(GOOD), photo)]
    model = hub.load_model("tiny", device="cpu")  # which draws numbers
    before = process()
    first, bad, second = outcomes(hub, [GOOD[0], name, GOOD[1]], photo, model=model)
    assert process() == before
    assert [contents(first), contents(second)] == undisturbed
    assert bad.error is not None
    told = str(bad.error)
    assert name in told or HARMLESS[name] in told
    assert "\n" not in told
    if name not in ("refuses", "returns_nan"):
        assert f"plugin 'hostile_plugins' ({FILE}), explainer '{name}'" in told
        assert bad.error.exit_code


def test_all_that_can_be_contained_together_beside_good_ones(hub: Hub, photo: str) -> None:
    undisturbed = [contents(one) for one in outcomes(hub, list(GOOD), photo)]
    names = [*CONTAINED]
    random.Random(0).shuffle(names)
    found = {one.explainer: one for one in outcomes(hub, [GOOD[0], *names, GOOD[1]], photo)}
    assert [contents(found[name]) for name in GOOD] == undisturbed
    assert [name for name in names if found[name].error is None] == []


@pytest.mark.parametrize("foreign", [False, True])
def test_a_built_in_plugin_is_watched_by_counters_and_any_other_by_contents(foreign: bool) -> None:
    model, inputs = model_of(), noise()
    before = model.predict(inputs)
    explainer = plugins.ScalesWeights()
    explainer.origin = Origin(plugin="one", builtin=not foreign)
    with pytest.raises(PluginError, match="changed the weight"):
        explainer.explain(model, inputs)
    if foreign:
        assert torch.equal(model.predict(inputs), before)
    else:  # there is no copy to restore it from
        with pytest.raises(ModelError, match=r"was changed and cannot be restored: plugin 'one', explainer"):
            model.predict(inputs)


def test_the_record_has_the_hash_of_the_weights_it_ran_on(hub: Hub, photo: str) -> None:
    model = hub.load_model("tiny", device="cpu")
    (one,) = explain_many([model], [hub.get_explainer("good")], [photo])
    (_, again) = explain_many([model], [hub.get_explainer(name) for name in ("scales_weights", "good")], [photo])
    assert one.explanation is not None
    assert again.explanation is not None
    assert one.explanation.metadata["weights_sha256"] == model.weights_hash
    assert again.explanation.metadata["weights_sha256"] == model.weights_hash


def test_the_record_names_the_plugin_and_the_checksum_of_its_file(hub: Hub, photo: str) -> None:
    import hashlib

    (one,) = outcomes(hub, ["good"], photo)
    assert one.explanation is not None
    assert one.explanation.metadata["plugin"] == {
        "plugin": "hostile_plugins",
        "source": FILE,
        "sha256": hashlib.sha256(Path(FILE).read_bytes()).hexdigest(),
    }


def test_a_network_that_counts_its_own_calls_is_not_a_plugins_fault() -> None:
    class Counting(nn.Sequential):
        calls = 0

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return super().forward(inputs)

    network = Counting(nn.Flatten(), nn.Linear(3 * 64 * 64, 3))
    network.calls = 0
    model = model_of(network)
    for _ in range(2):
        assert plugins.Good().explain(model, noise())


def test_a_users_own_change_through_data_is_neither_undone_nor_blamed() -> None:
    model, inputs = model_of(), noise()
    first = plugins.Good().explain(model, inputs)[0]
    model.module.head.weight.data.mul_(2)
    weight = model.module.head.weight.detach().clone()
    second = plugins.Good().explain(model, inputs)[0]
    assert not torch.equal(first.values, second.values)
    assert torch.equal(model.module.head.weight, weight)


def test_threads_of_the_users_own_pool_are_no_plugins_fault() -> None:
    from concurrent.futures import ThreadPoolExecutor

    model, inputs = model_of(), noise()
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(lambda _: plugins.GoodToo().explain(model, inputs), range(16)))


def test_a_global_explainer_that_exits_costs_its_own_ranking() -> None:
    from xaihub import GlobalExplainer, Ranking
    from xaihub.api.rank import rank_models

    class Weights(GlobalExplainer):
        def rank(self, model: Model, inputs: object, labels: object) -> Ranking:
            return Ranking(weights=model.module.head.weight.norm(dim=0), feature="channel", layer="head")

    class Leaves(Weights):
        def rank(self, model: Model, inputs: object, labels: object) -> Ranking:
            raise SystemExit(0)

    class Spoils(Weights):
        def rank(self, model: Model, inputs: object, labels: object) -> Ranking:
            model.module.head.weight.data.zero_()
            return super().rank(model, inputs, labels)

    (alone,) = rank_models([model_of()], [Weights()], [])
    leaves, spoils, good = rank_models([model_of()], [Leaves(), Spoils(), Weights()], [])
    assert "global explainer 'Leaves': SystemExit" in str(leaves.error)
    assert "global explainer 'Spoils' changed the weight 'head.weight'" in str(spoils.error)
    assert alone.explanation is not None
    assert good.explanation is not None
    assert torch.equal(alone.explanation.runs, good.explanation.runs)


# In a worker process.


def test_a_worker_computes_the_same_and_survives_an_exit_and_an_endless_loop(hub: Hub, photo: str) -> None:
    undisturbed = [contents(one) for one in outcomes(hub, list(GOOD), photo)]
    names = ["good", "ends_natively", "scales_weights", "good_too", "hangs"]
    found = {one.explainer: one for one in outcomes(hub, names, photo, timeout=5)}
    assert [contents(found[name]) for name in GOOD] == undisturbed
    told = {name: str(found[name].error) for name in set(names) - set(GOOD)}
    assert "explainer 'ends_natively' ended the process with exit status 0" in told["ends_natively"]
    assert "explainer 'hangs' did not finish within 5 s (--timeout sets the limit)" in told["hangs"]
    assert "explainer 'scales_weights' changed the weight" in told["scales_weights"]


def test_one_worker_serves_all_that_need_one_and_a_ranking_that_ends_it_costs_only_itself(hub: Hub, photo: str) -> None:
    from xaihub.api.rank import rank_models

    model = hub.load_model("tiny", device="cpu")
    good, bad = hub.get_global_explainer("good_ranking"), hub.get_global_explainer("ends_ranking")
    (alone,) = rank_models([model], [good], [photo])
    with Isolation(timeout=60) as first:
        first.rank(good, model, (), None, sources=[photo], seed=0)
    with Isolation(timeout=60) as second:
        assert second._takes(model, good)
        assert second._worker is first._worker
    found, ended = rank_models([model], [good, bad], [photo], timeout=60)
    assert alone.explanation is not None
    assert found.explanation is not None
    assert torch.equal(found.explanation.runs, alone.explanation.runs)
    assert found.explanation.names == alone.explanation.names
    assert "global explainer 'ends_ranking' ended the process with exit status 0" in str(ended.error)


def test_the_next_command_names_what_ran_in_a_process_that_ended(hub: Hub) -> None:
    pid = os.fork()
    if pid == 0:
        with hub.host.notes.running(hub.get_explainer("good")):
            os._exit(0)
    os.waitpid(pid, 0)
    with hub.host.notes.running(hub.get_explainer("good_too")):  # still runs
        told = PluginHost(entry_points=[], environ={}).load().warnings
    assert told == [f"plugin 'hostile_plugins' ({FILE}): a process ended while running explainer 'good'"]
    assert PluginHost(entry_points=[], environ={}).load().warnings == []


@SLOW
@pytest.mark.parametrize("name", KILLERS)
def test_each_that_kills_its_process_alone_in_a_worker(hub: Hub, photo: str, name: str) -> None:
    undisturbed = [contents(one) for one in outcomes(hub, list(GOOD), photo)]
    started = time.monotonic()
    first, bad, second = outcomes(hub, [GOOD[0], name, GOOD[1]], photo, timeout=10)
    assert time.monotonic() - started < 300  # a limit on hanging, not on speed
    assert [contents(first), contents(second)] == undisturbed
    if name != "forks":  # the second process of a fork ends, and the first has a result
        assert f"explainer '{name}'" in str(bad.error)


def test_without_a_limit_nothing_leaves_this_process(hub: Hub, photo: str) -> None:
    with Isolation(timeout=0) as isolation:
        model = hub.load_model("tiny", device="cpu")
        assert not isolation._takes(model, hub.get_explainer("good"))
    with Isolation(timeout=5) as isolation:
        assert not isolation._takes(model, plugins.Good())  # registered by nobody
        assert not isolation._takes(model.around(model.module), hub.get_explainer("good"))  # not loaded by name


# The commands.


def run(*args: str, folder: Path) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).parent.parent
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(str(root / part) for part in (".", "plugins", "zoo"))}
    command = [sys.executable, "-m", "xaihub", *PLUGINS, *args]
    return subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=800)


def here(*args: str) -> Result:
    """The same in this process, for explainers that do not end it."""
    return CliRunner().invoke(cli, [*PLUGINS, *args], prog_name="xaihub")


def scores(folder: Path) -> dict[tuple[str, str], float | None]:
    from xaihub.evaluation.store import RunStore

    with RunStore(folder) as store:
        return {(row.explainer, row.metric): row.value for row in store.rows()}


def evaluate_all(folder: Path, photo: str, explainers: list[str], metrics: list[str]) -> None:
    plain = ["--no-controls", "-m", "tiny", "--device", "cpu"]
    pairs = [pair for name in (*GOOD, "gradcam") for pair in ("-e", name)]
    kept = [pair for name in ("good_mean", "deletion", "sparseness") for pair in ("-k", name)]
    undisturbed = run("evaluate", photo, *plain, *pairs, *kept, "-o", "undisturbed", folder=folder)
    assert undisturbed.returncode == 0, undisturbed.stderr
    bad = [pair for name in explainers for pair in ("-e", name)] + [pair for name in metrics for pair in ("-k", name)]
    disturbed = run("evaluate", photo, *plain, *bad, *pairs, *kept, "--timeout", "5", "-o", "run", folder=folder)
    assert disturbed.returncode == 1, disturbed.stderr
    found = scores(folder / "run")
    assert {key: found[key] for key in scores(folder / "undisturbed")} == scores(folder / "undisturbed")
    lines = [line for line in disturbed.stderr.splitlines() if line.startswith("error: ")]
    for name in (*explainers, *metrics):
        if name not in ("forks", "spoils_map"):  # both have a result, which spoils nobody else's
            assert len([line for line in lines if line.startswith(f"error: {name}: ")]) == 1, (name, disturbed.stderr)
    again = run("evaluate", "--resume", "run", "--timeout", "5", folder=folder)
    assert again.returncode == 1
    assert scores(folder / "run") == found


@SLOW
def test_evaluate_beside_a_few(tmp_path: Path, photo: str) -> None:
    evaluate_all(tmp_path, photo, ["exits", "ends_natively", "writes_through_data"], ["spoils_map", "exits_scoring"])


@SLOW
@pytest.mark.timeout(2400)
def test_evaluate_beside_all(tmp_path: Path, photo: str) -> None:
    evaluate_all(tmp_path, photo, HOSTILE, METRICS)


def test_explain_names_each_and_exits_with_1(tmp_path: Path, photo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    bad = ["exits", "interrupts", "ends_process"]
    done = here("explain", photo, "-m", "tiny", *(part for name in (*bad, "good") for part in ("-e", name)))
    assert done.exit_code == 1
    for name in bad:
        assert sum(f"explainer '{name}'" in line for line in done.stderr.splitlines()) == 1
    assert len(list((tmp_path / "xaihub-out").glob("*.png"))) == 1


@pytest.mark.parametrize("name", ["exits", "ends_process", "becomes_another"])
def test_a_single_explanation_that_ends_the_process_is_no_success(photo: str, name: str) -> None:
    done = here("explain", photo, "-m", "tiny", "-e", name)
    assert done.exit_code == 1
    assert f"explainer '{name}': SystemExit" in done.stderr


def test_resuming_without_the_plugin_names_it_and_where_it_came_from(tmp_path: Path, photo: str) -> None:
    arguments = ["evaluate", photo, "--no-controls", "-m", "tiny", "-e", "good", "-k", "good_mean"]
    assert here(*arguments, "-o", str(tmp_path / "run"), "--timeout", "0").exit_code == 0
    told = CliRunner().invoke(cli, ["evaluate", "--resume", str(tmp_path / "run")])
    assert told.exit_code == 2
    assert "the results of explainer 'good' in this run were made by plugin 'hostile_plugins'" in told.stderr
    assert f"({FILE}), sha256 " in told.stderr
    assert f"add --plugin {FILE} before the command" in told.stderr
