"""Every kind of file that is read, as formats of the driver."""

from __future__ import annotations

from tests.fuzzing.driver import Format
from tests.fuzzing.formats import configs, explanations, images, plugin_files, runs, tables, weights

FORMATS: tuple[Format, ...] = (
    *configs.FORMATS,
    *runs.FORMATS,
    *explanations.FORMATS,
    *weights.FORMATS,
    *tables.FORMATS,
    *plugin_files.FORMATS,
    *images.FORMATS,
)
