"""Weights as safetensors and as files of torch.save, training checkpoints, and learned measures."""

from __future__ import annotations

import io
import os
import pickle
import random
import tempfile
import warnings
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors.torch import save
from torch import nn

from tests.fuzzing.driver import Format, nasty
from tests.fuzzing.formats.packed import change_json, change_packed
from xaihub.models.weights import fill, read_weights
from xaihub.training.loop.checkpoint import Checkpoint, load_optimizer
from xaihub.training.loop.progress import Progress
from xaihub_first_principles.learned_measures import KEY, Header, LearnedMeasure, read_measure


class Payload:
    """Makes a folder when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("canary",)


@cache
def _network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(2, 2))


def _saved(value: Any, *, zipped: bool = True) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


@cache
def _torch_seeds() -> list[bytes]:
    state = _network().state_dict()
    return [_saved(state), _saved({"state_dict": state, "epoch": 3}), _saved(state, zipped=False)]


@cache
def _odd() -> list[bytes]:
    """Return whole files of which torch can read most, and nobody should use any."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of its own odd kinds of tensors
        return _made()


def _made() -> list[bytes]:
    state, one = dict(_network().state_dict()), torch.ones(2)
    odd: list[Any] = [
        {"a": one.to_sparse()}, {"a": torch.eye(3).to_sparse_csr()}, {"a": torch.empty(9, device="meta")},
        {"a": torch.quantize_per_tensor(one, 0.1, 0, torch.qint8)}, {"a": one.expand(10**7, 2)},
        {"a": one.to(torch.complex64)},
        {"a": torch.empty(0, 2**40)}, {1: one}, [one], one, None, {}, {"a": [one]}, {**state, "x": one},
        {name: value.half() for name, value in state.items()}, {name: value[None] for name, value in state.items()},
        {"a": nn.Parameter(one)}, {"model": {"model": {"model": state}}}, {"a": Payload()}, Payload(),
        {"state_dict": state, "args": Payload()}, {f"module.{name}": value for name, value in state.items()},
    ]  # fmt: skip
    files = [_saved(value) for value in odd] + [_saved(value, zipped=False) for value in odd[-4:]]
    files += [pickle.dumps(Payload()), pickle.dumps(state)]
    scripted = io.BytesIO()
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), one), scripted)  # type: ignore[no-untyped-call]
    return [*files, scripted.getvalue()]


def _change_torch(data: bytes, draw: random.Random) -> bytes:
    """Change numbers and members of an archive, deflate it, or return something odd."""
    if draw.random() < 0.4 or not data.startswith(b"PK"):
        return draw.choice(_odd())
    source, target = zipfile.ZipFile(io.BytesIO(data)), io.BytesIO()
    method = draw.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2))
    with zipfile.ZipFile(target, "w", method) as archive:
        for member in source.infolist():
            content = source.read(member)
            if member.filename.endswith("data.pkl"):
                content = _change_pickle(content, draw)
            if draw.random() < 0.05:
                continue
            if draw.random() < 0.05:
                content = content[: draw.randrange(len(content) + 1)] + b"\0" * draw.choice((0, 1, 10**6))
            name = f"../{member.filename}" if draw.random() < 0.02 else member.filename
            archive.writestr(name, content)
    return target.getvalue()


def _change_pickle(content: bytes, draw: random.Random) -> bytes:
    places = [place for place, byte in enumerate(content) if byte in b"K\x85\x86\x87cQRt"]
    for _ in range(draw.choice((1, 2, 4))):
        place = draw.choice(places)
        new = draw.choice((b"K\x00", b"K\xff", b"M\xff\xff", b"J\xff\xff\xff\x7f", b"J\x00\x00\x00\x80", b"N", b"\x88",
                           b"\x8a\x05\x00\xe4\x0b\x54\x02", b"cos\nsystem\n", b"ctorch\nDoubleStorage\n",
                           b"}", b"]"))  # fmt: skip
        content = content[:place] + new + content[place + draw.choice((1, 2)) :]
    return content


def _use_weights(file: Path) -> None:
    fill(_network(), read_weights(file), what="it")


@cache
def _checkpoint() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        optimizer = {"0/step": torch.tensor(3.0), "0/exp_avg": torch.zeros(2, 1, 3, 3)}
        state = {"identity": "x", "progress": msgspec.to_builtins(Progress()), "objective": {}, "scaler": None}
        path = Path(folder) / "c.safetensors"
        Checkpoint(tensors={"model": _network().state_dict(), "optimizer": optimizer}, state=state).save(path)
        return path.read_bytes()


def _use_checkpoint(file: Path) -> None:
    found = Checkpoint.load(file)
    load_optimizer(torch.optim.AdamW(_network().parameters()), found.tensors.get("optimizer", {}))


@cache
def _measures() -> list[bytes]:
    header = Header(
        kind="mixture", features="grid:3", baseline="black", output="logit", shifts=1, smooth=False, budget=100,
        metrics={"insertion": 1.0}, model="toy", images=(2, 1, 0), gain=(0.1, 0.05, None),
    )  # fmt: skip
    first = {"p": torch.tensor([0.5], dtype=torch.float64), "theta": torch.ones(1, dtype=torch.float64)}
    second = {"masks": torch.ones(9, 9, dtype=torch.uint8), "weights": torch.ones(9, 9, dtype=torch.float64)}
    found = []
    for kind, tensors in (("mixture", first), ("weights", second)):
        text = msgspec.json.encode(msgspec.structs.replace(header, kind=kind)).decode()
        found.append(save(tensors, metadata={KEY: text}))
    return found


def _use_measure(file: Path) -> None:
    found = read_measure(file)
    assert isinstance(found, LearnedMeasure)
    _ = found.digest


def _change_record(data: bytes, draw: random.Random) -> bytes:
    def record(text: str) -> str:
        return change_json(text, draw) if text.startswith(("{", "[")) else str(nasty(draw))

    return change_packed(data, draw, record)


FORMATS = (
    Format(name="weights pth", seeds=_torch_seeds, change=_change_torch, read=_use_weights, file="w.pth"),
    Format(
        name="weights safetensors",
        seeds=lambda: [save(_network().state_dict())],
        change=change_packed,
        read=_use_weights,
        file="w.safetensors",
    ),
    Format(
        name="training checkpoint",
        seeds=lambda: [_checkpoint()],
        change=_change_record,
        read=_use_checkpoint,
        file="checkpoint.safetensors",
    ),
    Format(name="learned measure", seeds=_measures, change=_change_record, read=_use_measure, file="m.safetensors"),
)
