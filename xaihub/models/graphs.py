"""CUDA graphs: the kernels of a forward pass, recorded once per shape and launched together.

Small networks wait for Python to launch their kernels one by one; a recording is launched at once.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

REPEATS = 3  # passes of one shape before it is recorded; they also prepare the libraries that choose kernels
SHAPES = 4  # recorded at most, because each keeps its memory
TOLERANCE = (
    1e-3  # of the largest score or 1; the kernels are the same, so that only their order of summation can differ
)

_Replay = Callable[[Tensor], Tensor]


def recorded(network: nn.Module, inputs: Tensor) -> _Replay:
    """Record a pass on inputs like these; return a function that repeats it on other values.

    Raises:
        RuntimeError: The network waits for the GPU, such as to decide by values.
    """
    given = inputs.clone()
    # Within a recording, casts of weights must be recorded as well rather than taken from autocast's cache.
    kind, on = inputs.device.type, torch.is_autocast_enabled(inputs.device.type)
    graph = torch.cuda.CUDAGraph()
    with torch.autocast(kind, dtype=torch.get_autocast_dtype(kind), enabled=on, cache_enabled=False):
        side = torch.cuda.Stream(inputs.device)
        side.wait_stream(torch.cuda.current_stream(inputs.device))
        with torch.cuda.stream(side):
            network(given)
        torch.cuda.current_stream(inputs.device).wait_stream(side)
        with torch.cuda.graph(graph):
            outputs = network(given)

    def replay(values: Tensor) -> Tensor:
        given.copy_(values)
        graph.replay()
        found: Tensor = outputs.clone()
        return found

    return replay


class Graphed(nn.Module):
    """A network whose passes are recorded for shapes that repeat, if the recording returns the same scores."""

    def __init__(self, network: nn.Module, record: Callable[[nn.Module, Tensor], _Replay] = recorded) -> None:
        """Record nothing yet."""
        super().__init__()
        self.network, self._record = network, record
        self._seen: dict[tuple[object, ...], int] = {}
        self._replays: dict[tuple[object, ...], _Replay] = {}
        self._able = True
        self.eval()

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the network's outputs."""
        kind = inputs.device.type
        precision = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        key = tuple(inputs.shape), inputs.stride(), inputs.dtype, precision
        if key in self._replays:
            return self._replays[key](inputs)
        outputs: Tensor = self.network(inputs)
        self._seen[key] = self._seen.get(key, 0) + 1
        if self._able and self._seen[key] == REPEATS and len(self._replays) < SHAPES:
            self._add(key, inputs, outputs)
        return outputs

    def _add(self, key: tuple[object, ...], inputs: Tensor, outputs: Tensor) -> None:
        try:
            replay = self._record(self.network, inputs)
            difference = float((replay(inputs) - outputs).abs().max())
            self._able = difference <= TOLERANCE * max(1.0, float(outputs.abs().max()))
        except (RuntimeError, TypeError, AttributeError) as error:
            self._able = False
            warnings.warn(f"CUDA graphs are not used: {' '.join(str(error).split())[:200]}", stacklevel=2)
        if self._able:
            self._replays[key] = replay
