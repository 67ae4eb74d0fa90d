"""Safetensors files taken apart and put together, so that headers and metadata can be changed."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

from tests.fuzzing.driver import changed, nasty

DTYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "U8", "BOOL", "F8_E4M3", "C64", "F4", "U64", "X")


def apart(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Return header and buffer."""
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def together(header: dict[str, Any], buffer: bytes) -> bytes:
    """Return the file."""
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + buffer


def change_packed(data: bytes, draw: random.Random, record: Callable[[str], str] | None = None) -> bytes:
    """Change a shape, a dtype, offsets, values, names or the metadata of a safetensors file."""
    header, buffer = apart(data)
    names = [name for name in header if name != "__metadata__"]
    entry = header[draw.choice(names)]
    match draw.randrange(8):
        case 0:
            entry["shape"] = draw.choice(
                ([], [0], [1], [2**40], [-1], [0, 2**62], entry["shape"][::-1], [*entry["shape"], 1])
            )
        case 1:
            entry["dtype"] = draw.choice(DTYPES)
        case 2:
            entry["data_offsets"] = draw.choice(([0, 0], [0, 2**50], [8, 4], [-1, 4], [0, len(buffer)]))
        case 3:
            place = draw.randrange(len(buffer) or 1) // 4 * 4
            buffer = (
                buffer[:place] + bytes.fromhex(draw.choice(("0000807f", "0000c07f", "000080ff"))) + buffer[place + 4 :]
            )
        case 4:
            name = draw.choice(names)
            header = {draw.choice(("values", "sets", "runs", "extras.", "x", "")) if key == name else key: item
                      for key, item in header.items()}  # fmt: skip
        case 5:
            buffer = b"\xff" * len(buffer)
        case 6 if record is None:
            header["__metadata__"] = draw.choice(({}, {"a": "b"}, nasty(draw), {"record": "{}"}))
        case _ if record is not None and "__metadata__" in header:
            texts = header["__metadata__"]
            name = draw.choice(list(texts))
            texts[name] = record(texts[name])
        case _:
            return together(changed(header, draw), buffer)
    return together(header, buffer)


def change_json(text: str | bytes, draw: random.Random) -> str:
    """Return a JSON text with changed fields."""
    return json.dumps(changed(json.loads(text), draw), ensure_ascii=draw.random() < 0.5)
