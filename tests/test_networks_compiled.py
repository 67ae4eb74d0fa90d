"""Networks in other precisions, compiled ones, and inference mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import xaihub
from tests.networks import Detached, Net, model, noise
from tests.toy_explainers import make
from xaihub.errors import ExplainerRefused


class TestPrecision:
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    @pytest.mark.parametrize("name", ["rise", "saliency", "gradcam", "eigencam", "lime", "integrated_gradients"])
    def test_inputs_are_cast_to_the_network_and_outputs_to_float32(self, name: str, dtype: torch.dtype) -> None:
        torch.manual_seed(0)
        one = model(Net().to(dtype))
        assert one.predict(noise()).dtype is torch.float32
        found, expected = make(name).explain(one, noise())[0], make(name).explain(model(), noise())[0]
        assert found.values.dtype is torch.float32
        change = (found.values - expected.values).abs().mean() / expected.values.abs().mean()
        assert change < {torch.float64: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}[dtype]

    def test_inputs_in_another_precision_are_accepted(self) -> None:
        expected = make("saliency").explain(model(), noise())[0].values
        assert torch.allclose(make("saliency").explain(model(), noise().double())[0].values, expected)

    def test_weights_with_five_axes(self) -> None:
        class Deep(Net):
            def __init__(self) -> None:
                super().__init__()
                self.deep = nn.Conv3d(1, 1, 3, padding=1)

            def forward(self, inputs: Tensor) -> Tensor:
                return super().forward(self.deep(inputs.unsqueeze(1)).squeeze(1))

        assert make("gradcam").explain(model(Deep), noise())[0].values.abs().max() > 0


SCRIPTED: list[Callable[[], nn.Module]] = [lambda: torch.jit.script(Net()), lambda: torch.jit.trace(Net(), noise())]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
class TestCompiled:
    @pytest.mark.parametrize("make_network", SCRIPTED)
    def test_a_scripted_network_supports_black_box_and_gradient_methods(
        self, make_network: Callable[[], nn.Module]
    ) -> None:
        torch.manual_seed(0)
        one = model(make_network())
        for name in ("rise", "lime", "saliency"):
            found = make(name).explain(one, noise())[0]
            expected = make(name).explain(model(), noise())[0]
            assert torch.allclose(found.values, expected.values, atol=1e-6), name
            assert found.metadata["forward_passes"] == expected.metadata["forward_passes"]
        with pytest.raises(ExplainerRefused, match="compiled by torch.jit, which runs no hooks"):
            make("gradcam").explain(one, noise())
        for name in ("guided_backprop", "deeplift", "convad", "attention_rollout"):
            with pytest.raises(ExplainerRefused):
                make(name).explain(one, noise())
        assert len(one.weights_hash) == 64

    def test_a_quantised_network_supports_black_box_methods(self) -> None:
        one = model(torch.ao.quantization.quantize_dynamic(Net().eval(), {nn.Linear}, dtype=torch.qint8))
        assert make("rise").explain(one, noise(2))[1].values.abs().max() > 0
        assert len(one.weights_hash) == 64
        with pytest.raises(ExplainerRefused, match="saliency needs gradients, and 'mine' cannot"):
            make("saliency").explain(one, noise())
        with pytest.raises(ExplainerRefused, match="no gradient with respect to the image"):
            make("gradcam").explain(one, noise())
        with pytest.raises(ExplainerRefused, match="'mine' has operations without a gradient"):
            make("guided_backprop").explain(one, noise())
        with pytest.raises(ExplainerRefused, match="cannot be differentiated down to the input"):
            make("deeplift").explain(one, noise())

    def test_a_network_without_gradient_path_supports_black_box_methods(self) -> None:
        one = model(Detached)
        make("rise").explain(one, noise())
        for name in ("saliency", "integrated_gradients", "smoothgrad", "input_x_gradient", "gradient_shap"):
            with pytest.raises(ExplainerRefused, match=f"{name} needs gradients.*use a black-box explainer"):
                make(name).explain(one, noise())
        with pytest.raises(ExplainerRefused, match="cannot be differentiated down to the image"):
            make("gradcam").explain(one, noise())

    @pytest.mark.parametrize("kind", ["whole", "part", "in place", "forward"])
    def test_hooks_run_in_a_network_that_torch_compile_compiled(self, kind: str) -> None:
        torch.manual_seed(0)
        network: Any = Net()
        if kind == "whole":
            network = torch.compile(network, backend="eager")
        elif kind == "part":
            network.body = torch.compile(network.body, backend="eager")
        elif kind == "in place":
            network.compile(backend="eager")
        else:
            network.forward = torch.compile(network.forward, backend="eager")
        one, rows = model(network), noise(2)
        one.predict(rows)  # compiles it
        for name in ("gradcam", "eigencam", "guided_backprop", "rise", "gradcam"):
            for found, expected in zip(make(name).explain(one, rows), make(name).explain(model(), rows), strict=True):
                assert torch.allclose(found.values, expected.values, atol=1e-6), name
                assert found.metadata["forward_passes"] == expected.metadata["forward_passes"], name


class TestInferenceMode:
    @pytest.mark.parametrize("name", ["gradcam", "saliency", "integrated_gradients", "rise", "scorecam"])
    def test_explaining_under_it(self, name: str) -> None:
        expected = make(name).explain(model(), noise())[0].values
        with torch.inference_mode():
            found = make(name).explain(model(), noise())[0].values
        assert torch.allclose(found, expected, atol=1e-7)
        assert not found.is_inference()

    def test_a_model_built_under_it(self) -> None:
        class Indexed(Net):  # a tensor that is no buffer is saved for the backward pass as well
            def __init__(self) -> None:
                super().__init__()
                self.order = torch.arange(5)
                self.head2 = self.head  # a module used under two names

            def forward(self, inputs: Tensor) -> Tensor:
                return super().forward(inputs)[:, self.order] * 2

        with torch.inference_mode():
            one = model(Indexed)
        for name in ("gradcam", "saliency"):
            expected = make(name).explain(model(Indexed), noise())[0].values
            assert torch.allclose(make(name).explain(one, noise())[0].values, expected)
        assert one.module.head.weight is one.module.head2.weight

    def test_measuring_under_it(self) -> None:
        from xaihub import Case, Scene

        one, rows = model(), noise()
        explainer = make("gradcam")
        explanation = explainer.explain(one, rows)[0]
        logits = one.predict(rows)
        scene = Scene(model=one, image=rows[0], logits=logits[0], target=xaihub.Target().resolve(logits))
        case = Case(scene=scene, explanation=explanation, explainer=explainer)
        metric = xaihub.Hub().get_metric("deletion")
        expected = metric.measure(case)[0].value
        with torch.inference_mode():
            assert metric.measure(case)[0].value == expected
