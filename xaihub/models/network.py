"""Networks as a model needs them: in evaluation mode, on its device, and with weights that autograd accepts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from xaihub.errors import ModelError
from xaihub.models.opaque import Opaque, hookable, opened


def prepared(module: nn.Module, device: torch.device, order: torch.memory_format, *, name: str) -> nn.Module:
    """Return the network in evaluation mode, on the device, and in a memory order; a compiled one is wrapped.

    Raises:
        ModelError: It cannot be moved, or switched to evaluation mode.
    """
    module = opened(module)
    try:
        module = module.eval().to(device=device)
    except (NotImplementedError, RuntimeError, AttributeError) as error:
        raise ModelError(
            f"model {name!r} ({type(module).__name__}) cannot be put on {device} in evaluation mode:"
            f" {' '.join(str(error).split())[:200]}",
            hint="give the original torch.nn.Module",
        ) from error
    with torch.inference_mode(mode=False):
        _leave_inference_mode(module)
        to_order(module, order)
    return Opaque(module).eval() if isinstance(module, torch.jit.ScriptModule) else module


def largest_outputs(network: nn.Module, run: Callable[[], Any]) -> list[int]:
    """Return the bytes of the four largest tensors that layers return while the network runs once."""
    sizes: list[int] = []

    def note(_module: nn.Module, _inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            sizes.append(output.element_size() * output.nelement())

    handles = [part.register_forward_hook(note) for part in hookable(network).values()]
    try:
        with torch.inference_mode():
            note(network, None, run())
    finally:
        for handle in handles:
            handle.remove()
    return sorted(sizes)[-4:]


def to_order(module: nn.Module, order: torch.memory_format) -> None:
    """Bring all weights with four axes to a memory order; channels-last exists for those only."""
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.ndim == 4 and not tensor.is_contiguous(memory_format=order):
            tensor.data = tensor.data.contiguous(memory_format=order)


def _leave_inference_mode(module: nn.Module) -> None:
    """Replace tensors created under `torch.inference_mode()`, which cannot take part in autograd."""
    copies: dict[int, Tensor] = {}  # tied weights stay tied

    def normal(tensor: Tensor) -> Tensor:
        if id(tensor) not in copies:
            copy = tensor.clone()
            copies[id(tensor)] = nn.Parameter(copy, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else copy
        return copies[id(tensor)]

    for part in module.modules():
        if isinstance(part, torch.jit.ScriptModule):
            continue
        tables: tuple[dict[str, Any], ...] = (part._parameters, part._buffers, part.__dict__)
        for table in tables:
            for key, value in list(table.items()):
                if isinstance(value, Tensor) and value.is_inference():
                    table[key] = normal(value)


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Switch to evaluation mode and freeze the weights; return to the previous modes and flags on exit."""
    modules = list(network.modules())
    modes = [module.training for module in modules]
    weights = [
        weight
        for module in modules
        for weight in module._parameters.values()
        if weight is not None and weight.requires_grad
    ]
    # Setting an attribute of a module is slow, so only changes are written.
    if any(modes):
        network.eval()
    for weight in weights:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for module, training in zip(modules, modes, strict=True):
            if module.training != training:
                module.training = training
        for weight in weights:
            weight.requires_grad_(True)
