"""Train or fine-tune a model: the plan of a run from its arguments, and the run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xaihub.api.parameters import assign
from xaihub.errors import ParameterError
from xaihub.training.config import Config, checked

if TYPE_CHECKING:
    from xaihub.training.run import Estimate, Outcome


def train(
    data: str | Path | None = None,
    *,
    output: str | Path | None = None,
    objective: str | type = "cross_entropy",
    params: Mapping[str, Any] | None = None,
    resume: str | Path | None = None,
    held_out: str | Path | None = None,
    dry_run: bool = False,
    device: str = "auto",
    **plan: Any,
) -> Outcome | Estimate:
    """Train or fine-tune a model, as `xaihub train` does.

    Args:
        data: A folder with one sub-folder per class, a CSV file, hf:NAME, digits or evidence.
        output: The new folder of the run.
        objective: The name of a training objective, or a registered class.
        params: Parameters of the objective.
        resume: The folder of an interrupted run; then no argument may change its plan.
        held_out: A new folder for copies of the held-out images, as `evaluate` reads them.
        dry_run: Check everything, take three steps and return the cost; nothing is stored.
        device: "auto", "cpu", "cuda", ...
        plan: The other options of the command by their names, such as model="resnet50", epochs=10.

    Returns:
        The outcome, with the model card as `card`, which every function accepts as a model.

    Raises:
        XaihubError: The data, the model or an argument cannot be used, or training diverged.

    Example::

        card = xaihub.train("photos/", epochs=3, output="runs/mine").card
        xaihub.explain("cat.jpg", model=str(card))
    """
    from xaihub.api.registration import default_hub, names, settings  # here, as the command line imports this module
    from xaihub.training import run as service

    hub = default_hub()
    if resume:
        if data or plan or params:
            raise ParameterError("a resumed run takes its plan from the run", hint="give only resume and device")
        config = service.read_config(resume)
    elif not data:
        raise ParameterError("no data to train on", hint="name a folder, a CSV file, hf:NAME, digits or evidence")
    else:
        (name,) = names(objective)
        (own,) = assign(settings(params), [hub.objectives.get(name)])
        values = {**plan, "data": data, "objective": name}
        config = finished({key: str(value) if isinstance(value, Path) else value for key, value in values.items()}, own)
    if dry_run:
        return service.estimate(hub, config, device=device)
    folder = resume or output
    if not folder:
        raise ParameterError("no output folder for the run", hint="add output='runs/mine'")
    return service.train(hub, config, folder, resume=bool(resume), device=device, held_out=held_out)


def finished(plan: dict[str, Any], parameters: Mapping[str, str]) -> Config:
    """Return the plan; paths become absolute, because a run may be resumed from another folder.

    Raises:
        ParameterError: A value is out of range, or two of them exclude each other.
    """
    plan = {**plan, "parameters": {**plan.get("parameters", {}), **parameters}}
    for name in ("data", "checkpoint", "classes", "model"):
        path = plan.get(name)
        if path and (name != "model" or path.lower().endswith((".yaml", ".yml"))) and os.path.exists(path):  # noqa: PTH110 - a long name is no error
            plan[name] = str(Path(path).resolve())
    return checked(plan)
