"""Writes docs/reference/schemas: what each command prints with `--json`, as JSON schemas; `make api` runs it.

The tests validate every record that they make a command print.
"""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from docs.outputs import OUTPUTS

FOLDER = Path(__file__).parent / "reference" / "schemas"


def validate(command: str, text: str) -> None:
    """Raise if a command may not print this JSON text, which may also be an item of its list."""
    errors = []
    for kind in OUTPUTS[command].values():
        for candidate in (text, f"[{text}]"):
            try:
                TypeAdapter(kind).validate_json(candidate, strict=True)
            except ValidationError as error:
                errors.append(error)
            else:
                return
    raise min(errors, key=lambda error: error.error_count())


def files() -> dict[str, str]:
    """Return the text of each schema by file name."""
    return {
        f"{form.replace(' --', ' ').replace(' ', '-').lower()}.json": json.dumps(
            {
                "$schema": "https://json-schema.org/draft/2020-12/schema",
                **TypeAdapter(kind).json_schema(mode="serialization"),
                "title": f"xaihub {form} --json",
            },
            indent=2,
        )
        + "\n"
        for forms in OUTPUTS.values()
        for form, kind in forms.items()
    }


def table() -> str:
    """Return the rows of the table in docs/reference/json.md."""
    rows = [
        f"| `xaihub {form} --json` | [{name}](schemas/{name}) |"
        for form, name in zip((form for forms in OUTPUTS.values() for form in forms), files(), strict=True)
    ]
    return "\n".join(["| Command | Schema |", "|---|---|", *rows])


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for stale in FOLDER.glob("*.json"):
        stale.unlink()
    for name, text in files().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
