"""The command that repeats a run, and its settings, without the folders of absolute paths."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence

from xaihub.evaluation.config import Choice, Config
from xaihub.explainers.page.document import last_part
from xaihub.explainers.page.provenance import Facts
from xaihub.explainers.page.view import parameters, plain_value

# What a command repeats unless it is the default, with the default where that is neither None nor empty.
_OPTIONS: dict[str, str | None] = {
    **dict.fromkeys(("target", "outputs", "page", "labels", "masks", "boxes", "batch_size", "threads", "budget")),
    **{"precision": "f32", "limit": None, "shard": None, "maps": "f32"},
}
NAMED = 20  # images that a command names one by one; of more, it names their folder


def evaluate_command(config: Config, *, images: bool = True) -> str:
    """Return the command that repeats a run; its paths are relative to the folder that contains them all."""
    words = ["xaihub", "evaluate", *(_images(config.images) if images else ["IMAGE..."])]
    for flag, names in (("-m", config.models), ("--like", config.like), ("--text", config.text)):
        for name in names:
            words += [flag, last_part(name) if os.path.isabs(name) else name]  # noqa: PTH117 - of any system
    for flag, choices in (("-e", config.explainers), ("-k", config.metrics)):
        for choice in choices:
            words += [flag, choice if isinstance(choice, str) else choice.name]
    if head := config.head if isinstance(config.head, str) else config.head.name:
        words += ["--head", head]
    for choice in (*config.explainers, *config.metrics, config.head):
        if isinstance(choice, Choice):
            for name, value in choice.params.items():
                words += ["-p", f"{choice.name}.{name}={plain_value(value)}"]
    for name, value in config.input.items():
        words += ["--input", f"{name}={_plain_list(value)}"]
    for name in _OPTIONS:
        for value in config.budgets if name == "budget" else [getattr(config, name)]:
            if value not in (None, "") and _OPTIONS[name] != value:
                words += [f"--{name.replace('_', '-')}", plain_value(value)]
    words += ([] if config.controls else ["--no-controls"]) + ["--seed", str(config.seed), "-o", "RUN"]
    return shlex.join(words)


def settings(config: Config) -> Facts:
    """Return the settings of a run by name."""
    shown: Facts = []
    for name in config.__struct_fields__:
        value = getattr(config, name)
        if name not in ("images", "output") and value not in (None, "", [], {}):
            shown.append((name.replace("_", " "), _text(value)))
    return shown


def repeated(config: Config) -> bool:
    """Return whether an explainer or a metric has several settings, or a budget of its own, which need a file."""
    names = [
        [choice if isinstance(choice, str) else choice.name for choice in chosen]
        for chosen in (config.explainers, config.metrics)
    ]
    budgets = any(isinstance(choice, Choice) and choice.budget is not None for choice in config.explainers)
    return budgets or any(len(several) > len(set(several)) for several in names)


def _plain_list(value: object) -> str:
    return ",".join(map(plain_value, value)) if isinstance(value, (list, tuple)) else plain_value(value)


def _text(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    if isinstance(value, dict):
        return ", ".join(f"{name}={_plain_list(one)}" for name, one in value.items())
    if isinstance(value, Choice):
        own = [] if value.budget is None else [f"budget={plain_value(value.budget)}"]
        inside = ", ".join([*([parameters(value.params)] if value.params else []), *own])
        return value.name + (f" ({inside})" if inside else "")
    return plain_value(value)


def _images(paths: Sequence[str]) -> list[str]:
    if len(paths) == 1 or not all(map(os.path.isabs, paths)):
        return [last_part(path) for path in paths[:NAMED]]
    common = os.path.commonpath(paths)
    if len(paths) > NAMED:
        return [last_part(common)]
    return [os.path.relpath(path, os.path.dirname(common)) for path in paths]  # noqa: PTH120 - as above
