"""Models that a function of the user's builds, named by file and function: "model.py:build".

The file is code of the user's choice, which runs like a script, as a file given with `--plugin` does.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from xaihub.errors import ModelError, ParameterError, XaihubError, did_you_mean
from xaihub.files import read_file, rooted
from xaihub.models.adapter import ModelAdapter, ModelRequest
from xaihub.models.model import Model
from xaihub.models.weights import fill, read_weights
from xaihub.notices import fence
from xaihub.notices.importing import import_file

LARGEST = 2**24  # bytes of a file of Python code
_NAME = re.compile(r"(?P<file>.+\.py):(?P<function>\w+)", re.IGNORECASE)
_imported: dict[str, tuple[str, str]] = {}  # by file: the checksum of what was imported, and the module's name


def named(name: str) -> tuple[str, str] | None:
    """Return the file and the function that a model's name consists of, or None for any other name.

    Raises:
        ModelError: The function is missing.
    """
    found = _NAME.fullmatch(name)
    if found is None and name.lower().endswith(".py"):
        raise ModelError(f"{name!r} names a file, but no function", hint=f"add it: {name}:build")
    return None if found is None else (found["file"], found["function"])


class FunctionAdapter(ModelAdapter):
    """Calls the user's function."""

    def knows(self, name: str) -> bool:
        """Whether a name consists of a file and a function.

        Raises:
            ModelError: It is a file, without a function.
        """
        return named(name) is not None

    def rooted(self, name: str) -> str:
        """Return the name with the absolute path of the file."""
        return rooted(name)

    def build(self, request: ModelRequest, device: torch.device) -> Model:
        """Return the model that the function returns for the options as keyword arguments.

        Its `code` is the file, the function and the sha256 of the file. A file that was edited is imported again.

        Raises:
            ModelError: The file cannot be read or imported, it has no such function, the function raises or does not
                return a `xaihub.Model`, or the weights do not fit.
            ParameterError: Random weights or an input size are asked for.
        """
        name = request.card.architecture
        given = dict(request.card.input)
        drawn: dict[str, Any] = {key: tuple(given.pop(key)) for key in ("range", "bands") if key in given}
        if request.card.weights.source == "none" or given:
            what = f"another input ({', '.join(given)})" if given else "random weights"
            raise ParameterError(f"{what} cannot be asked of {name!r}", hint="pass options to the function instead")
        file, function = named(name) or ("", "")
        checksum = sha256(read_file(file, what="model file", error=ModelError, limit=LARGEST)).hexdigest()
        module = _outcome(lambda: _import(file, checksum), f"{file!r} cannot be imported")
        make = getattr(module, function, None)
        if not callable(make):
            own = [key for key, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
            hint = did_you_mean(function, own) or "write a function that returns a xaihub.Model"
            raise ModelError(f"{file!r} has no function {function!r}", hint=hint)
        model = _outcome(lambda: make(**request.options), f"{name!r} cannot build the model")
        if not isinstance(model, Model):
            raise ModelError(
                f"{name!r} returned a {type(model).__name__}, not a xaihub.Model",
                hint="wrap a network: xaihub.Model(network, name='mine', preprocessing=xaihub.Preprocessing(...))",
            )
        if request.checkpoint is not None:
            fill(model.module, read_weights(request.checkpoint), what=f"the weights file {request.checkpoint!r}")
        if request.classes is not None:
            model.classes = model.outputs.names(request.classes)
        model.code = {"file": str(Path(file).absolute()), "function": function, "sha256": checksum}
        model.preprocessing = replace(model.preprocessing, **drawn)
        return model.around(model.module, device=device)


def _import(file: str, checksum: str) -> Any:
    path = str(Path(file).resolve())
    before, name = _imported.get(path, (checksum, ""))
    if before != checksum:
        sys.modules.pop(name, None)
    module = import_file(path)
    _imported[path] = (checksum, module.__name__)
    return module


def _outcome(action: Callable[[], Any], what: str) -> Any:
    """Return the value of the user's code; whatever it raises becomes one line, and settings are restored."""
    outcome = fence.run(action, libraries=True)
    if isinstance(outcome.error, XaihubError):
        raise outcome.error
    if outcome.error is not None:
        raise ModelError(f"{what}: {fence.described(outcome.error)}") from outcome.error
    return outcome.value
