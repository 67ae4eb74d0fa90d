"""OpenVINO as a backend for forward passes on CPUs."""

from __future__ import annotations

from xaihub import BackendSpec, hookimpl


@hookimpl
def xaihub_register_backends() -> list[BackendSpec]:
    """Register the backend."""
    return [
        BackendSpec(
            name="openvino",
            target="xaihub_openvino.backend:OpenVINO",
            summary="Compiled networks on CPUs.",
            library="openvino",
            extra="fast",
            limits="Networks that decide by values are run by torch. Scores in f32 differ by rounding; in bf16 by about"
            " as much as torch's own.",
        )
    ]
