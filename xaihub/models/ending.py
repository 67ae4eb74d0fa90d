"""Whether a network's last operation is a sigmoid or a softmax, read off the autograd graph of its outputs."""

from __future__ import annotations

from typing import Any

from torch import Tensor

# Nodes that only change the form of a tensor, or limit its values.
_FORM = frozenset(
    """Alias AsStrided Cat Clamp ClampMax ClampMin Clone Copy Expand Narrow Permute Reshape Select Slice Split Squeeze
    Stack T ToCopy Transpose Unbind UnsafeView Unsqueeze View""".split()  # noqa: SIM905 - one word per line is long
)
_ENDS = {"Sigmoid": "sigmoid", "Softmax": "softmax", "SafeSoftmax": "softmax"}
_COMPILED = ("DifferentiableGraph", "torch::jit", "CompiledFunction")


def ending(outputs: Any) -> str | None:
    """Return "sigmoid", "softmax", or "" for any other operation; None if the graph does not show it.

    Args:
        outputs: What the network returned, with its graph.
    """
    if not isinstance(outputs, Tensor) or outputs.grad_fn is None:
        return None
    todo, found = [outputs.grad_fn], set()
    while todo:
        node: Any = todo.pop()
        name = node.name().rstrip("0123456789").removesuffix("Backward")
        if name.startswith(_COMPILED):
            return None
        if name in _FORM:
            todo += [parent for parent, _ in node.next_functions if parent is not None]
        else:
            found.add(_ENDS.get(name, ""))
    return found.pop() if len(found) == 1 else ""
