"""Masked passes run through a faster copy of the network, as long as the network is the one that was copied."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from xaihub import Hub, Model, Preprocessing
from xaihub.hub.registry import Loaders
from xaihub.masking import make_removal, masked_forward_passes
from xaihub.models.executor import Executor
from xaihub.models.headed import BeforeClassifier


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    made = nn.Sequential(*layers, nn.Linear(8, 3))
    made[1].running_mean.uniform_(-0.3, 0.3)
    made[1].running_var.uniform_(0.5, 1.5)
    return made.eval()


def images() -> Tensor:
    return torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def chosen(executor: Executor, network: nn.Module) -> bool:
    """Whether a copy runs in place of the network."""
    with torch.inference_mode(), executor:
        return executor.network(network, images()) is not network


def model(network: nn.Module | None = None) -> Model:
    preprocessing = Preprocessing(spatial=(), size=(3, 8, 8), mean=(0.0,) * 3, std=(1.0,) * 3)
    return Model(
        net() if network is None else network, name="small", preprocessing=preprocessing, classes=("a", "b", "c")
    )


def test_a_copy_runs_without_a_graph_inside_the_block_only() -> None:
    executor, network = Executor(), net()
    assert chosen(executor, network)
    with executor:
        assert executor.network(network, images()) is network  # a graph may be needed
    with torch.inference_mode():
        assert executor.network(network, images()) is network


def test_what_changes_in_the_network_changes_in_the_passes() -> None:
    subject = model()
    image, masks = images()[0], (images()[:, :1] > 0.5).float()
    removal = make_removal("zero", subject, image)

    def passes() -> Tensor:
        return torch.cat([batch.outputs for batch in masked_forward_passes(subject, image, masks, removal=removal)])

    def literal() -> Tensor:
        with torch.inference_mode():
            return subject.module(image * masks)

    assert torch.allclose(passes(), literal(), atol=1e-5)
    with torch.no_grad():
        subject.module[0].weight.mul_(2.0)
    assert torch.allclose(passes(), literal(), atol=1e-5)
    subject.module[0].weight.data.mul_(0.3)  # no counter shows this
    assert torch.allclose(passes(), literal(), atol=1e-5)
    subject.module[1].weight.data.mul_(-1.0)
    with subject.untouched():
        assert torch.allclose(passes(), literal(), atol=1e-5)
        assert torch.allclose(passes(), literal(), atol=1e-5)
    subject.module[2] = nn.Sigmoid()
    assert torch.allclose(passes(), literal(), atol=1e-5)
    subject.module[1].running_mean.add_(1.0)
    assert torch.allclose(passes(), literal(), atol=1e-5)
    subject.module[4].forward = lambda x: 3 * torch.flatten(x, 1)
    assert torch.allclose(passes(), literal(), atol=1e-5)


def test_a_hook_on_a_part_runs_on_the_part_itself() -> None:
    network, seen = net(), []
    executor = Executor()
    assert chosen(executor, network)
    handle = network[1].register_forward_hook(lambda *_: seen.append(1))
    assert not chosen(executor, network)
    handle.remove()
    assert chosen(executor, network)
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        assert not chosen(executor, network)
    finally:
        handle.remove()


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
def test_what_follows_single_operations_follows_those_of_the_network() -> None:
    class Follows(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return func(*args, **(kwargs or {}))

    executor, network = Executor(), net()
    with Follows():
        assert not chosen(executor, network)
    assert not chosen(executor, torch.jit.script(network))
    assert chosen(executor, network)


def test_hooks_of_the_network_as_a_whole_run_once_per_pass() -> None:
    subject, rows = model(), []
    subject.module.register_forward_hook(lambda _module, _inputs, output: rows.append(len(output)))
    image, masks = images()[0], torch.ones(5, 1, 8, 8)
    with subject.counting() as counts:
        list(masked_forward_passes(subject, image, masks, removal=make_removal("zero", subject, image)))
    assert counts.forward_passes == sum(rows) == 5


@pytest.mark.parametrize("outputs", ["binary", "regression"])
def test_a_network_with_a_head_runs_as_a_copy_with_the_head(outputs: str) -> None:
    torch.manual_seed(0)
    subject = model(nn.Sequential(*net()[:-1], nn.Linear(8, 1)).eval())
    subject = Model(subject.module, name="one", preprocessing=subject.preprocessing, outputs=outputs)
    assert chosen(subject.executor, subject.module)
    image, masks = images()[0], (images()[:, :1] > 0.5).float()
    found = list(masked_forward_passes(subject, image, masks, removal=make_removal("zero", subject, image)))
    assert torch.allclose(torch.cat([batch.outputs for batch in found]), subject.predict(image * masks), atol=1e-5)


def test_what_a_classifier_reads_is_computed_by_a_copy_too() -> None:
    network = net()
    shell = BeforeClassifier(network, "5")
    executor = Executor()
    with torch.inference_mode(), executor:
        copy = executor.network(shell, images())
        assert copy is not shell
        assert torch.allclose(copy(images()), network[:5](images()), atol=1e-5)


EXPLAINERS: dict[str, dict[str, Any]] = {
    "rise": {"masks": 200},
    "occlusion": {"stride": 32},
    "kernel_shap": {"features": "grid:4", "samples": 200},
    "lime": {"features": "grid:4", "samples": 200},
    "shap": {"features": "grid:4", "evaluations": 60},
    "shapley_values": {"features": "grid:4"},
    "first_principles": {"features": "grid:4"},
    "scorecam": {"channels": 4},
    "rex": {},
}


@pytest.mark.parametrize("backend", ["eager", "openvino"])
def test_maps_are_those_of_the_network_itself(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from xaihub.testing import toys

    if backend != "eager":
        pytest.importorskip(backend, reason=f"the library of the backend {backend} is not installed")
    hub, subject = Hub(), toys.tiny_cnn()
    subject.backends, subject.runtime.backend = Loaders(hub, "backends"), backend
    inputs = torch.rand(1, *subject.input_size, generator=torch.Generator().manual_seed(0))
    explainers = [hub.get_explainer(name, **values) for name, values in EXPLAINERS.items()]
    fast = [explainer.explain(subject, inputs)[0] for explainer in explainers]
    monkeypatch.setattr(Executor, "network", lambda _self, network, _inputs: network)
    for explainer, found in zip(explainers, fast, strict=True):
        plain = explainer.explain(subject, inputs)[0].values
        assert found.metadata["backend"] == backend, explainer.name
        tolerance = 1e-4 * float(plain.abs().max())
        assert torch.allclose(found.values, plain, rtol=1e-3, atol=tolerance), explainer.name
