"""Backends take over passes without a graph where their scores are the network's, and nowhere else."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from xaihub import Backend, Hub, Model, ModelError, ParameterError, Preprocessing, Runtime
from xaihub.errors import UnknownName
from xaihub.masking import make_removal, masked_forward_passes, variant_scores
from xaihub.models import backends, cache
from xaihub.models.headed import FunctionHead
from xaihub.params import Precision


def net() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(8, 3)).eval()


class Copying(Backend):
    """Runs a copy of the network in torch, so that what differs is known."""

    precisions: tuple[Precision, ...] = ("f32", "bf16")
    offset = 0.0
    calls: list[str]

    @property
    def version(self) -> str:
        return "1"

    def compile(self, network: nn.Module, inputs: Tensor, precision: Precision) -> bytes:
        self.calls.append("compile")
        return pickle.dumps(network)

    def load(self, compiled: bytes, precision: Precision, threads: int) -> Callable[[Tensor], Tensor]:
        self.calls.append(f"load {precision} {threads}")
        network = pickle.loads(compiled)
        offset = torch.tensor([self.offset, 0.0, 0.0])
        return lambda inputs: network(inputs) + offset


def model(
    network: nn.Module | None = None, *, offset: float = 0.0, backend: str = "copying", **runtime: Any
) -> tuple[Model, list[str]]:
    made = Model(
        net() if network is None else network,
        name="small",
        preprocessing=Preprocessing(spatial=(), size=(3, 8, 8), mean=(0.0,) * 3, std=(1.0,) * 3),
        classes=("a", "b", "c"),
        runtime=Runtime(backend=backend, batch_size=4, **runtime),
    )
    calls: list[str] = []
    kind = type("Copying", (Copying,), {"offset": offset, "calls": calls})
    made.backends, made.automatic_backend = {"copying": lambda: kind}, "copying"
    return made, calls


def masks(count: int = 8) -> Tensor:
    return (torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(1)) > 0.5).float()


def passes(subject: Model, count: int = 8) -> Tensor:
    image = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(2))
    removal = make_removal("zero", subject, image)
    return torch.cat([b.outputs for b in masked_forward_passes(subject, image, masks(count), removal=removal)])


def test_a_named_backend_runs_the_passes_and_is_compiled_once() -> None:
    subject, calls = model()
    expected = passes(model(backend="eager")[0])

    assert torch.allclose(passes(subject), expected, atol=1e-5)
    assert subject.executor.record(subject)["backend"] == "copying"
    assert calls == ["compile", "load f32 1"]
    again, calls = model()
    passes(again)
    assert calls == ["load f32 1"]  # from the cache


class Keeping(Copying):
    """Runs the very network that it was given."""

    kept: list[nn.Module]

    def compile(self, network: nn.Module, inputs: Tensor, precision: Precision) -> bytes:
        self.kept.append(network)
        return str(len(self.kept) - 1).encode()

    def load(self, compiled: bytes, precision: Precision, threads: int) -> Callable[[Tensor], Tensor]:
        return self.kept[int(compiled)].forward


def difference(call: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    return call(inputs) - call(inputs.flip(-1))


def double(call: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    return 2 * call(inputs)


def test_another_way_to_run_the_network_is_compiled_as_well() -> None:
    subject, _ = model()
    kept: list[nn.Module] = []
    subject.backends = {"copying": lambda: type("Kind", (Keeping,), {"kept": kept})}
    inputs = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode(), subject.executing():
        for run in (difference, double):
            found = variant_scores(subject, run.__name__, run, inputs)
            assert torch.allclose(found, run(subject.module, inputs), atol=1e-5)

    assert len(kept) == 2  # each under a key of its own
    assert subject.executor.record(subject)["backend"] == "copying"


def test_a_damaged_cache_is_made_anew() -> None:
    passes(model()[0])
    (entry,) = [entry for entry in cache.entries() if entry.kind == "compiled"]
    entry.file.write_bytes(entry.file.read_bytes()[:-1] + b"!")
    subject, calls = model()
    passes(subject)

    assert calls == ["compile", "load f32 1"]


def test_bytes_that_the_library_cannot_read_are_made_anew() -> None:
    passes(model()[0])
    candidate = backends.Candidate(model()[0])
    candidate.pays(torch.zeros(1, 3, 8, 8), 0)
    cache.put("compiled", candidate._key, b"not a pickle", about="small")
    subject, calls = model()
    passes(subject)

    assert calls == ["load f32 1", "compile", "load f32 1"]
    assert subject.executor.record(subject)["backend"] == "copying"


@pytest.mark.parametrize(("offset", "reason"), [(0.01, "differ by"), (0.0009, "another class wins")])
def test_a_backend_that_differs_is_not_used(offset: float, reason: str) -> None:
    network = net()
    if reason != "differ by":  # three equal scores, so that any difference decides
        nn.init.zeros_(network[5].weight)
        nn.init.zeros_(network[5].bias)
        network[5].bias.data[1] = 0.0005
    subject, _ = model(network, offset=offset)
    expected = passes(model(network, backend="eager")[0])
    with pytest.warns(UserWarning, match=f"'copying' is not used for 'small': .*{reason}.*; eager is used"):
        found = passes(subject)

    assert torch.equal(found, expected)
    assert subject.executor.record(subject)["backend"] == "eager"


class Deciding(nn.Module):
    """Returns other scores for bright images."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = net()

    def forward(self, inputs: Tensor) -> Tensor:
        scores: Tensor = self.inner(inputs)
        return -scores if inputs.mean() > 10 else scores


def test_a_network_that_decides_by_values_is_not_recorded() -> None:
    subject, calls = model(Deciding())
    with pytest.warns(UserWarning, match="decides by values"):
        passes(subject)

    assert calls == []


def test_weights_that_change_are_compiled_again() -> None:
    subject, calls = model()
    passes(subject)
    assert calls.pop(0) == "compile"
    subject.module[5].weight.data.mul_(2.0)  # no counter shows this
    subject.module[5].bias.data.add_(1.0)
    changed = passes(subject)

    assert torch.allclose(changed, passes(model(subject.module, backend="eager")[0]), atol=1e-5)
    assert "compile" in calls


def test_hooks_get_the_network_itself() -> None:
    subject, calls = model()
    seen: list[Any] = []
    handle = subject.module[0].register_forward_hook(lambda *_: seen.append(1))
    passes(subject)
    handle.remove()

    assert seen
    assert calls == []


def test_passes_of_a_backend_are_counted() -> None:
    subject, _ = model()
    with subject.counting() as counts:
        passes(subject)

    assert counts.forward_passes == 8


def test_a_head_runs_after_the_backend() -> None:
    subject, calls = model()
    headed = subject.with_head(FunctionHead(lambda scores: scores[:, 0] - scores[:, 1], "margin"))
    found = passes(headed)

    assert calls
    assert torch.allclose(found[:, 0], torch.stack([row[0] - row[1] for row in passes(subject)]), atol=1e-5)


def test_auto_waits_until_the_passes_pay() -> None:
    subject, calls = model(backend="auto")
    passes(subject, backends.PAYS_STORED - 1)
    assert subject.executor.record(subject)["backend"] == "eager"
    assert calls == []
    passes(subject, backends.PAYS)
    assert (
        subject.executor.record(subject)["backend"] == "eager+copying"
    )  # in all that was not an explanation of its own
    fresh, calls = model(backend="auto")
    passes(fresh, backends.PAYS_STORED)  # it is stored now
    assert calls == ["load f32 1"]


def test_a_backend_that_cannot_be_loaded_costs_a_line_only() -> None:
    def broken() -> type[Backend]:
        raise ModelError("no library")

    subject, _ = model()
    subject.backends = {"copying": broken}
    with pytest.warns(UserWarning, match="no library; eager is used"):
        passes(subject)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        passes(subject)  # once


@pytest.mark.skipif(not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="the CPU has no bf16")
def test_half_precision_is_computed_on_request_and_recorded() -> None:
    half, _ = model(backend="eager", precision="bf16")
    found, expected = passes(half), passes(model(backend="eager")[0])

    assert found.dtype == torch.float32
    assert 0 < (found - expected).abs().max() < 0.05
    assert half.executor._fast is not None  # batch norms are folded all the same
    assert half.executor.record(half) == {"backend": "eager", "precision": "bf16", "batch_size": 4, "threads": 1}


def test_names_and_precisions_are_checked_when_a_model_is_loaded() -> None:
    hub = Hub()
    with pytest.raises(UnknownName, match="no backend is named 'openvin'"):
        hub.load_model("resnet18", scratch=True, device="cpu", runtime=Runtime(backend="openvin"))
    with pytest.raises(ParameterError, match="no precision 'f8'"):
        hub.load_model("resnet18", scratch=True, device="cpu", runtime=Runtime(precision="f8"))  # type: ignore[arg-type]
