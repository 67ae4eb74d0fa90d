"""Networks that OpenVINO compiles; the compiled form is portable between processes of one machine."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from functools import cached_property
from typing import Any

import openvino
import torch
from torch import Tensor, nn

from xaihub import Backend
from xaihub.params import Precision

DEVICE = "CPU"


class OpenVINO(Backend):
    """OpenVINO's CPU plugin, for any number of rows per pass."""

    precisions = ("f32", "bf16")

    @property
    def version(self) -> str:
        """The version of the library."""
        return str(openvino.__version__)

    @cached_property
    def _core(self) -> Any:
        return openvino.Core()

    def compile(self, network: nn.Module, inputs: Tensor, precision: Precision) -> bytes:
        """Trace the network in torch, convert the trace and compile it.

        Raises:
            Exception: As OpenVINO: it lacks an operation.
        """
        with torch.inference_mode(mode=False), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the tracer, about shapes, which stay as they are
            graph = openvino.convert_model(network, example_input=torch.zeros(2, *inputs.shape[1:]))
        graph.reshape([-1, *inputs.shape[1:]])
        made = self._core.compile_model(graph, DEVICE, {"INFERENCE_PRECISION_HINT": precision})
        stream = io.BytesIO()
        made.export_model(stream)
        return stream.getvalue()

    def load(self, compiled: bytes, precision: Precision, threads: int) -> Callable[[Tensor], Tensor]:
        """Return a function that runs one pass after the other."""
        model = self._core.import_model(
            io.BytesIO(compiled),
            DEVICE,
            {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1},
        )
        request = model.create_infer_request()

        def run(inputs: Tensor) -> Tensor:
            found = request.infer({0: inputs.contiguous().numpy()}, share_inputs=True)
            return torch.from_numpy(found[0])

        return run
