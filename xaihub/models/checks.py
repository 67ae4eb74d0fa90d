"""Checks that the scores of an image depend on nothing but the image: not on chance, nor on the rest of the batch."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from xaihub.errors import ModelError, XaihubError
from xaihub.models.outputs import HOW

# Largest change of a score, as a fraction of the range of scores, that is rounding: in a repetition, and in a batch,
# where kernels differ and dynamic quantisation scales activations by the largest value of the batch.
REPEATED = 1e-3
BATCHED = 0.05
FUNCTION = "wrap it in a module that returns them, or explain a function of what it returns: target=FUNCTION in Python"
_NARROW = tuple(getattr(torch, name) for name in dir(torch) if name.startswith("float8"))  # nothing computes in them


def check_modules(network: nn.Module, *, name: str) -> None:
    """Check the modules of a network in evaluation mode for those that mix rows or draw random numbers.

    Raises:
        ModelError: A batch normalisation has no running statistics, or dropout is active.
    """
    for path, part in network.named_modules():
        if isinstance(part, _BatchNorm) and part.running_mean is None and part.running_var is None:
            raise ModelError(
                f"layer {path!r} ({type(part).__name__}) of model {name!r} has no running statistics, so the images of"
                " a batch change each other's scores",
                hint="train it with track_running_stats=True",
            )
        if isinstance(part, _DropoutNd) and part.training and part.p > 0:
            raise ModelError(
                f"layer {path!r} ({type(part).__name__}) of model {name!r} stays active in evaluation mode, so its"
                " scores are random",
                hint="let eval() switch it off",
            )


def check_class_names(classes: Sequence[str], count: int, *, name: str) -> None:
    """Check that there are no class names, or one for each of `count` scores; a single score may stand for two classes.

    Raises:
        ModelError: There are more or fewer.
    """
    if classes and count not in (1, len(classes)):
        raise ModelError(
            f"model {name!r} has {len(classes)} class names for {count} class scores",
            hint="give one name per score, in order, or none",
        )


def check_rows(run: Callable[[Tensor], Any], size: tuple[int, int, int], *, name: str) -> None:
    """Run the network on noise, then on a batch of the same noise and a blank image; the noise must score the same.

    Raises:
        ModelError: The scores are random or depend on the rest of the batch, or the network cannot be run.
    """
    noise = torch.randn(1, *size, generator=torch.Generator().manual_seed(0))
    before = _random_states()
    with running(name, size):
        alone = run(noise)
        again = alone if _random_states() == before else run(noise)
    check_returned(alone, 1, name=name)
    if _change(alone, again) > REPEATED:
        raise ModelError(
            f"model {name!r} returns different scores for the same image: dropout or noise stays active in evaluation",
            hint="let eval() switch it off",
        )
    try:
        batch = run(torch.cat([noise, torch.zeros_like(noise)]))
    except Exception:
        return
    if isinstance(batch, Tensor) and batch.shape == (2, alone.shape[1]) and _change(alone, batch[:1]) > BATCHED:
        raise ModelError(
            f"model {name!r} returns other scores for an image when another image is in the same batch",
            hint="use normalisation with running statistics in evaluation mode",
        )


@contextmanager
def running(name: str, size: Sequence[int]) -> Iterator[None]:
    """Turn whatever the network raises inside, on inputs of a size, into one line: it is foreign code.

    Raises:
        ModelError: In place of the network's own error.
    """
    try:
        yield
    except XaihubError:
        raise
    except Exception as error:
        shape, reason = "x".join(map(str, size)), " ".join(str(error).split())[:200]
        raise ModelError(
            f"model {name!r} cannot be run on an input of {shape}: {type(error).__name__}: {reason}",
            hint="check the input size and the options of the architecture",
        ) from error


def check_returned(outputs: Any, rows: int, *, name: str) -> None:
    """Check that a network returned one row of real numbers for each of `rows` images.

    Raises:
        ModelError: It returned something else; the message describes it.
    """
    fault, hint = f"returned {_described(outputs)} for {rows} image{'s' * (rows != 1)}", FUNCTION
    if isinstance(outputs, Tensor) and outputs.shape == (rows,):
        hint = HOW
    elif isinstance(outputs, Tensor) and outputs.ndim == 2:
        usable = outputs.layout is torch.strided and outputs.device.type != "meta"
        if not usable or outputs.is_complex() or outputs.dtype in _NARROW:
            hint = "return a dense tensor of float32, float16 or bfloat16"
        elif len(outputs) == rows and outputs.shape[1]:
            return
        elif outputs.shape[1]:
            hint = "return a row per image, or run one image at a time (batch size 1)"
    raise ModelError(f"model {name!r} {fault} instead of one row of class scores per image", hint=hint)


def _described(outputs: Any) -> str:
    """Return in a few words what a network returned."""
    kind = type(outputs).__name__
    if isinstance(outputs, Tensor):
        form = "" if outputs.layout is torch.strided else f"{str(outputs.layout).rpartition('.')[2]} "
        form += "meta " if outputs.device.type == "meta" else ""
        return f"a {form}tensor of {str(outputs.dtype).rpartition('.')[2]} of shape {tuple(outputs.shape)}"
    if isinstance(outputs, Mapping):
        return f"a {kind} with {', '.join(map(repr, list(outputs)[:4])) or 'nothing'}"
    return f"a {kind} of {len(outputs)}" if isinstance(outputs, (tuple, list)) else f"a value of type {kind}"


def check_scores(logits: Any, rows: int, classes: Sequence[str], *, name: str, declared: bool) -> None:
    """Check what a network returned for `rows` images; `declared` says that its meaning is known.

    Raises:
        ModelError: It is not one row of finite scores per image, is one score of unknown meaning, or does not have one
            score per class name.
    """
    check_returned(logits, rows, name=name)
    if logits.shape[1] == 1 and not declared:
        raise ModelError(
            f"model {name!r} has one output, which may be a logit (binary) or a value (regression)", hint=HOW
        )
    if not bool(torch.isfinite(logits).all()):
        raise ModelError(
            f"model {name!r} returned NaN or infinite class scores", hint="check its weights and precision"
        )
    check_class_names(classes, logits.shape[1], name=name)


def _random_states() -> list[Any]:
    """Return the states of all global generators, in a form that can be compared."""
    states = [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [])]
    return [random.getstate(), np.random.get_state()[1].tobytes(), *(state.numpy().tobytes() for state in states)]  # type: ignore[index]  # noqa: NPY002


def _change(one: Tensor, other: Tensor) -> float:
    """Return the largest change of a score, as a fraction of the range of scores."""
    one, other = one.float(), other.float()
    spread = one.max() - one.min() if one.shape[1] > 1 else one.abs().max()
    return float((one - other).abs().max() / spread.clamp(min=1e-6))


def are_probabilities(scores: Tensor) -> bool:
    """Whether every row of (B, K) scores is non-negative and sums to one, as after a softmax."""
    if scores.shape[1] < 2 or bool((scores < 0).any()):
        return False
    return bool(((scores.sum(1) - 1).abs() < 1e-3).all())
