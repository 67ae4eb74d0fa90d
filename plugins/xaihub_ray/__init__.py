"""Evaluations on a Ray cluster."""

from xaihub.hookspecs import hookimpl
from xaihub.specs import EngineSpec


@hookimpl
def xaihub_register_engines() -> list[EngineSpec]:
    """Register the engine."""
    return [
        EngineSpec(
            name="ray",
            target="xaihub_ray.engine:RayEngine",
            summary="Actors of a Ray cluster, or of Ray on this machine; each has a GPU or a CPU to itself.",
            extra="ray",
        )
    ]
