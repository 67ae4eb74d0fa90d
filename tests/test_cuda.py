"""The same results on a GPU; skipped where there is none."""

from __future__ import annotations

import pytest
import torch

import xaihub
from xaihub import Runtime
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
