"""The same results on a GPU; skipped where there is none."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import xaihub
from xaihub import Runtime
from xaihub.errors import ModelError
from xaihub.masking import batch_rows, make_features, make_removal, masked_forward_passes

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.mark.parametrize("explainer", ["gradcam", "integrated_gradients", "occlusion", "rise"])
def test_a_gpu_gives_the_values_of_a_cpu(explainer: str) -> None:
    values = {"rise": {"masks": 32}, "occlusion": {"stride": 64, "window": 64}}.get(explainer, {})
    on_cpu, on_gpu = (
        xaihub.explain(explainer=explainer, device=device, **values).heatmap() for device in ("cpu", "cuda")
    )
    torch.testing.assert_close(on_gpu, on_cpu, rtol=1e-2, atol=1e-3 * float(on_cpu.abs().max()))


def test_mixed_precision_gives_finite_maps() -> None:
    model = xaihub.load_model(device="cuda", runtime=Runtime(precision="bf16"))
    explanation = xaihub.explain(model=model, explainer="rise", masks=32)
    assert explanation.metadata["precision"] == "bf16"
    assert bool(explanation.values.isfinite().all())


def test_the_batch_follows_the_memory_budget() -> None:
    model = xaihub.load_model(device="cuda")
    model.runtime = Runtime(memory_budget=200_000_000)
    small = batch_rows(model)
    model.runtime = Runtime(memory_budget=2_000_000_000)
    assert 1 <= small < batch_rows(model)


def test_masks_are_evaluated_on_the_device() -> None:
    model = xaihub.load_model(device="cuda")
    image = torch.randn(model.input_size, device="cuda")
    features = make_features("grid:4", model, image)
    batches = masked_forward_passes(
        model, image, torch.eye(16), removal=make_removal("blur", model, image), expand=features.masks
    )
    assert all(batch.outputs.is_cuda and batch.masks.is_cuda for batch in batches)


@pytest.mark.parametrize("precision", ["bf16", "f16"])
def test_maps_in_half_precision_are_those_of_single_precision(precision: xaihub.Precision) -> None:
    maps = [
        xaihub.explain(model=xaihub.load_model(device="cuda", runtime=Runtime(precision=each)), explainer="rise",
                       masks=64, tolerance=0.0).values.flatten()
        for each in ("f32", precision)
    ]  # fmt: skip
    assert float(torch.corrcoef(torch.stack(maps))[0, 1]) >= 0.99


def test_passes_of_one_shape_are_recorded_and_stay_those_of_the_network() -> None:
    model = xaihub.load_model(device="cuda", runtime=Runtime(batch_size=4))
    image = torch.randn(model.input_size, device="cuda")
    masks = (torch.rand(64, 1, *model.input_size[1:]) < 0.5).float()
    removal = make_removal("blur", model, image)

    def passes() -> torch.Tensor:
        return torch.cat([batch.outputs for batch in masked_forward_passes(model, image, masks, removal=removal)])

    found = passes()
    graphed = model.executor._fast
    assert graphed is not None
    assert len(graphed._replays) == 1
    handle = model.module.conv_stem.register_forward_hook(lambda *_: None)  # the network itself runs
    torch.testing.assert_close(found, passes(), rtol=1e-3, atol=1e-3)
    handle.remove()
    with torch.no_grad():
        model.module.classifier.weight.mul_(2.0)
        model.module.classifier.bias.mul_(2.0)
    torch.testing.assert_close(passes(), 2 * found, rtol=1e-3, atol=1e-3)


def test_a_network_that_waits_for_the_gpu_is_not_recorded() -> None:
    class Deciding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(3, 2)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            scores: torch.Tensor = self.head(inputs.mean((2, 3)))
            return -scores if float(inputs.sum()) > 1e9 else scores

    from xaihub.models.graphs import Graphed

    network, inputs = Deciding().cuda().eval(), torch.rand(2, 3, 8, 8, device="cuda")
    graphed = Graphed(network)
    with torch.inference_mode():
        graphed(inputs)
        graphed(inputs)
        with pytest.warns(UserWarning, match="CUDA graphs are not used"):
            graphed(inputs)
        torch.testing.assert_close(graphed(inputs), network(inputs))


def test_scores_that_are_not_numbers_are_refused() -> None:
    model = xaihub.load_model(device="cuda", runtime=Runtime(batch_size=2))
    image = torch.full(model.input_size, float("nan"), device="cuda")
    with pytest.raises(ModelError, match="NaN"):
        list(masked_forward_passes(model, image, torch.ones(6, 1, *model.input_size[1:]),
                                   removal=make_removal("zero", model, image)))  # fmt: skip
