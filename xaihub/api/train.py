"""Train or fine-tune a model: the plan of a run from its arguments, and the run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xaihub.api.parameters import assign
from xaihub.api.registration import default_hub, names, settings
from xaihub.errors import ParameterError

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
    from xaihub.training import run as service
    from xaihub.training.config import checked

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
        paths = {key: _rooted(key, value) for key, value in {**plan, "data": data}.items()}
        config = checked({**paths, "objective": name, "parameters": own})
    if dry_run:
        return service.estimate(hub, config, device=device)
    folder = resume or output
    if not folder:
        raise ParameterError("no output folder for the run", hint="add output='runs/mine'")
    return service.train(hub, config, folder, resume=bool(resume), device=device, held_out=held_out)


def _rooted(key: str, value: Any) -> Any:
    """Return a path as an absolute one, because a run may be resumed from another folder."""
    text = str(value) if isinstance(value, Path) else value
    is_path = key in ("data", "checkpoint", "classes") or (
        key == "model" and str(text).lower().endswith((".yaml", ".yml"))
    )
    return str(Path(text).resolve()) if is_path and text and Path(text).exists() else text
