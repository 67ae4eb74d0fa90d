"""The network of an ONNX file as a module, without gradients and layers."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime as ort
import torch
from torch import Tensor, nn

from xaihub import ModelError

_TYPES: dict[str, Any] = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}


class OnnxNetwork(nn.Module):
    """Runs an ONNX file with onnxruntime.

    A file for a fixed number of images is run as often as needed; the last batch is filled with copies.

    Attributes:
        black_box: Why methods that need more than outputs refuse.
    """

    black_box = "it is run by onnxruntime, which gives neither gradients nor layers"
    digest: Tensor

    def __init__(
        self,
        file: Path,
        *,
        layout: Literal["", "NCHW", "NHWC"] = "",
        colours: Literal["RGB", "BGR"] = "RGB",
        output: str = "",
        probabilities: bool = False,
        cuda: bool = False,
    ) -> None:
        """Open `file`.

        Args:
            file: The file.
            layout: The order of the input's axes; by default, from its shape.
            colours: The order of the input's channels.
            output: The name of the output; by default, the first.
            probabilities: The outputs are probabilities, of which the logits are returned.
            cuda: Use a GPU, if this build of onnxruntime can.

        Raises:
            ModelError: The file is damaged, does not take one batch of images, or has no such output.
        """
        super().__init__()
        self.file, self.gpu = file, cuda
        self.colours, self.probabilities = colours, probabilities
        with file.open("rb") as data:  # the weights' hash is that of the buffers
            digest = hashlib.file_digest(data, "sha256").digest()
        self.register_buffer("digest", torch.tensor(list(digest), dtype=torch.uint8))
        self._open()
        inputs, outputs = self.session.get_inputs(), [one.name for one in self.session.get_outputs()]
        if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].type not in _TYPES:
            found = ", ".join(f"{one.name} {one.shape} {one.type}" for one in inputs)
            raise ModelError(f"{file.name!r} does not take one batch of images as floating-point numbers, but {found}")
        if output and output not in outputs:
            raise ModelError(f"{file.name!r} has no output {output!r}", hint=f"it has {', '.join(outputs)}")
        self.input, self.numbers = inputs[0].name, _TYPES[inputs[0].type]
        self.output = output or outputs[0]
        shape = [side if isinstance(side, int) and side > 0 else None for side in inputs[0].shape]
        self.layout = layout or ("NHWC" if shape[3] in (1, 3) and shape[1] not in (1, 3) else "NCHW")
        self.rows = shape[0]
        # (channels, height, width), None where any size is accepted.
        self.size = (shape[3], shape[1], shape[2]) if self.layout == "NHWC" else (shape[1], shape[2], shape[3])

    def _open(self) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 3
        wanted = ["CUDAExecutionProvider"] * self.gpu + ["CPUExecutionProvider"]
        providers = [name for name in wanted if name in ort.get_available_providers()]
        try:
            self.session: Any = ort.InferenceSession(str(self.file), options, providers=providers)
        except Exception as error:  # onnxruntime has no base class for its errors
            raise ModelError(f"onnxruntime cannot read {str(self.file)!r}: {_line(error)}") from error

    def __getstate__(self) -> dict[str, Any]:
        """Return everything but the session, which cannot be copied."""
        return {name: value for name, value in self.__dict__.items() if name != "session"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a copy, with a session of its own."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._open()

    def extra_repr(self) -> str:
        """Return the settings, by which networks of one file are told apart."""
        return f"{self.output}, {self.layout}, {self.colours}, probabilities={self.probabilities}"

    def fit_batch(self, size: tuple[int, int, int]) -> None:
        """Run single images if the file claims to take any number of them, but does not.

        Raises:
            ModelError: It cannot be run on an input of (channels, height, width) `size`.
        """
        try:
            self(torch.zeros(self.rows or 1, *size))
        except Exception as error:
            shape = "x".join(map(str, size))
            raise ModelError(f"{self.file.name!r} cannot be run on an input of {shape}: {_line(error)}") from error
        if self.rows is None:
            try:
                self(torch.zeros(2, *size))
            except Exception:  # an exported reshape often has the size of its example
                self.rows = 1

    def forward(self, inputs: Tensor) -> Any:
        """Return what the file returns for (B, C, H, W) inputs, without a graph."""
        array = inputs.detach().cpu().numpy()
        array = array[:, ::-1] if self.colours == "BGR" else array
        array = (array.transpose(0, 2, 3, 1) if self.layout == "NHWC" else array).astype(self.numbers, order="C")
        rows = self.rows or len(array)
        filled = np.concatenate([array, np.repeat(array[-1:], -len(array) % rows, axis=0)])
        parts = [self.session.run([self.output], {self.input: part})[0] for part in _parts(filled, rows)]
        whole = torch.from_numpy(np.concatenate(parts)[: len(array)]).to(inputs.device)
        scores = whole.float().flatten(1) if whole.ndim > 2 and whole[0].numel() == whole.shape[1] else whole.float()
        if not self.probabilities:
            return scores
        tiny = torch.finfo(scores.dtype).tiny
        if scores.ndim == 1 or scores.shape[1] == 1:
            return scores.clamp(min=tiny).log() - (1 - scores).clamp(min=tiny).log()
        return scores.clamp(min=tiny).log()


def _parts(array: np.ndarray[Any, Any], rows: int) -> list[np.ndarray[Any, Any]]:
    return [array[start : start + rows] for start in range(0, len(array), rows)]


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
