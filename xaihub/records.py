"""Records as plain data: JSON types, a canonical form for hashing, YAML files with line-numbered errors, and tables."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import yaml

from xaihub.errors import InputError, XaihubError
from xaihub.files import read_file

# The C parser is several times faster, where PyYAML was built with it.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_LARGEST = 4_000_000  # bytes; 20 000 class names are a tenth of it
_DEEPEST = 16  # the C parser overflows the stack on deep nesting
_VALUES = 250_000  # of a YAML file, as each takes about 2 KB while it is parsed
_TABLE = 64 * 2**20  # bytes of a CSV file
_CELLS = 4_000_000  # of a CSV file, as each takes about 60 bytes
T = TypeVar("T")


def canonical(value: Any) -> str:
    """Return a value as JSON in one fixed form, for comparing and hashing."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)


def plain(value: Any) -> Any:
    """Return `value` as JSON types: NumPy and torch numbers unwrapped, other unknown types as text."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):  # arrays, tensors and their scalars
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (str, int, bool)) else str(value)


class YamlFile:
    """One parsed YAML file that knows the line of each value."""

    def __init__(self, path: str | Path, *, what: str, error: type[XaihubError]) -> None:
        """Parse the file with a safe loader.

        Raises:
            XaihubError: As `error`: the file cannot be read, is not valid YAML, or contains a tag.
        """
        self.path, self._what, self._error = Path(path), what, error
        self._text = read_file(path, what=what, error=error, limit=_LARGEST)
        try:
            _refuse_bombs(self._text)
            self.data = yaml.load(self._text, Loader=_LOADER)  # noqa: S506 - a safe loader either way
        except Exception as problem:  # PyYAML does not wrap what `int` and `datetime` raise for impossible values
            mark = getattr(problem, "problem_mark", None)
            where = f", line {mark.line + 1}" if mark else ""
            reason = getattr(problem, "problem", None) or str(problem) or type(problem).__name__
            raise error(f"{what} {str(path)!r}{where}: {reason}") from problem

    def convert(self, structure: type[T], *, hint: str = "") -> T:
        """Return the file's content as `structure`.

        Raises:
            XaihubError: A key is unknown or missing, or a value has the wrong type.
        """
        try:
            return msgspec.convert(self.data, type=structure)
        except Exception as problem:  # msgspec documents one type, and raises others for keys and huge numbers
            message, _, path = (str(problem) or type(problem).__name__).partition(" - at `")
            unknown = re.search(r"unknown field `(.+)`", message)
            keys = re.findall(r"[^.\[\]`$]+", path)
            if unknown:
                keys.append(unknown.group(1))
            raise self.complaint(f"{message[0].lower()}{message[1:]}", *keys, hint=hint) from problem

    def complaint(self, message: str, *keys: str | int, hint: str = "") -> XaihubError:
        """Return an error about the value at `keys`, with its line number."""
        shown = "".join(f"[{key}]" if str(key).isdigit() else f".{key}" for key in keys).lstrip(".")
        where = f" at {shown!r}" if shown else ""
        return self._error(f"{self._what} {str(self.path)!r}, line {self.line(*keys)}{where}: {message}", hint=hint)

    def line(self, *keys: str | int) -> int:
        """Return the line of the value at `keys`, or of its nearest ancestor that exists."""
        node, line = yaml.compose(self._text, Loader=_LOADER), 1
        for key in keys:
            found: Any = None
            if isinstance(node, yaml.MappingNode):
                pair = next(((k, v) for k, v in node.value if k.value == str(key)), None)
                if pair is not None:
                    line, found = pair[0].start_mark.line + 1, pair[1]
            elif isinstance(node, yaml.SequenceNode) and str(key).isdigit() and int(key) < len(node.value):
                found = node.value[int(key)]
                line = found.start_mark.line + 1
            if found is None:
                break
            node = found
        return line


def _refuse_bombs(text: bytes) -> None:
    """Refuse what makes a small file large or deep in memory: aliases, nesting, and many values."""
    depth = 0
    for number, event in enumerate(yaml.parse(text, Loader=_LOADER)):
        if number > _VALUES:
            raise ValueError(f"it has more than {_VALUES:,} values")
        if isinstance(event, yaml.AliasEvent):
            raise ValueError("anchors and aliases are not allowed")  # noqa: TRY004 - the text is wrong, not a type
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            raise ValueError("it is nested too deeply")


def read_table(path: str | Path) -> tuple[list[str], list[list[str]]]:
    """Return the columns and the rows of a CSV file; each row has one text per column, blank rows are skipped.

    Raises:
        InputError: It cannot be read, is not UTF-8 text, contains a null byte, or is too large.
    """
    shown = repr(str(path))
    data = read_file(path, what="table", error=InputError, limit=_TABLE)
    try:
        text = data.decode("utf-8-sig")  # spreadsheets write a byte order mark
        if "\0" in text:
            raise InputError(f"{shown} is not a CSV file: it contains a null byte")
        reader = csv.reader(io.StringIO(text, newline=""))
        columns = next((row for row in reader if row), [])
        rows: list[list[str]] = []
        for row in filter(None, reader):
            if len(rows) * len(columns) >= _CELLS:
                raise InputError(f"{shown} has more than {_CELLS:,} cells")
            rows.append([*row[: len(columns)], *[""] * (len(columns) - len(row))])
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{shown} is not a CSV file: {error}") from error
    return columns, rows
