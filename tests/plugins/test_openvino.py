"""OpenVINO gives the scores of torch, whatever method asks for them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import xaihub
from xaihub import Hub, Model, Preprocessing, Runtime
from xaihub.hub.host import PluginHost
from xaihub.models import cache

pytest.importorskip("openvino", reason="OpenVINO is not installed: pip install 'xaihub[fast]'")

EXPLAINERS: dict[str, dict[str, Any]] = {
    "rise": {"masks": 64, "cell": 4},
    "occlusion": {"window": 8, "stride": 8},
    "kernel_shap": {"samples": 64, "features": "grid:4"},
    "scorecam": {},
    "first_principles": {"budget": 64},
    "convad": {"iterations": 2, "cell": 8, "shrink": 0},
}


@pytest.fixture(scope="module")
def hub() -> Hub:
    import xaihub_openvino

    host = PluginHost().load()
    if "openvino" not in [info.name for info in host.plugins]:
        host.register(xaihub_openvino, name="openvino", builtin=True)
    return Hub(host)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    first, second = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 16, 3, 2, 1)
    norms = nn.BatchNorm2d(8), nn.BatchNorm2d(16)
    for norm in norms:
        norm.running_mean.uniform_(-0.3, 0.3)
        norm.running_var.uniform_(0.5, 1.5)
    features = nn.Sequential(first, norms[0], nn.ReLU(), second, norms[1], nn.ReLU())
    return nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5)).eval()


def model(hub: Hub, network: nn.Module, backend: str, **runtime: Any) -> Model:
    preprocessing = Preprocessing(spatial=(), size=(3, 32, 32), mean=(0.5,) * 3, std=(0.25,) * 3)
    made = Model(network, name="small", preprocessing=preprocessing, runtime=Runtime(backend=backend, **runtime))
    made.backends = {spec.name: spec.load for spec in hub.backends}
    return made


@pytest.fixture(scope="module")
def image() -> Tensor:
    return torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("name", EXPLAINERS)
def test_maps_do_not_depend_on_the_backend(hub: Hub, network: nn.Module, image: Tensor, name: str) -> None:
    explainer = hub.get_explainer(name, **EXPLAINERS[name])
    eager, fast = (explainer.explain(model(hub, network, backend), image)[0] for backend in ("eager", "openvino"))
    largest = eager.values.abs().max()

    assert fast.metadata["warnings"] == eager.metadata["warnings"]
    assert fast.metadata["backend"] == "openvino"
    assert (fast.values - eager.values).abs().max() <= 1e-3 * largest
    assert fast.metadata["forward_passes"] == eager.metadata["forward_passes"]


def test_the_compiled_network_is_kept(hub: Hub, network: nn.Module, image: Tensor) -> None:
    explainer = hub.get_explainer("rise", masks=16)
    explainer.explain(model(hub, network, "openvino"), image)

    assert [entry.about for entry in cache.entries()] == ["small (openvino)"]


@pytest.mark.skipif(not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="the CPU has no bf16")
def test_half_precision_is_close(hub: Hub, network: nn.Module, image: Tensor) -> None:
    explainer = hub.get_explainer("occlusion", window=8, stride=8)
    whole, half = (
        explainer.explain(model(hub, network, "openvino", precision=precision), image)[0]
        for precision in ("f32", "bf16")
    )

    assert half.metadata["backend"] == "openvino"
    assert torch.corrcoef(torch.stack([whole.values.flatten(), half.values.flatten()]))[0, 1] > 0.95


def test_it_needs_its_library_only_when_it_is_used(hub: Hub) -> None:
    spec = hub.backends.get("openvino")

    assert spec.library == "openvino"
    assert issubclass(spec.load(), xaihub.Backend)
