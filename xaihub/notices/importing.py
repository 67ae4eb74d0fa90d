"""Import of Python files that belong to no package."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import util
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType


def imported(name: str) -> ModuleType | None:
    """Return the module of a name or a file, if it is there and complete, so that importing it runs no code."""
    module = sys.modules.get(_module_name(Path(name).resolve()) if name.endswith(".py") else name)
    return None if getattr(getattr(module, "__spec__", None), "_initializing", module is None) else module


class _Source(SourceFileLoader):
    """Compiles what the file contains: Python would run its older cached code after an edit in the same second."""

    def get_code(self, fullname: str) -> CodeType:  # noqa: ARG002
        """Return the code of the module."""
        code: CodeType = self.source_to_code(self.get_data(self.path), self.path)
        return code


def import_file(path: str) -> ModuleType:
    """Import a Python file that belongs to no package, once, under a unique module name.

    It can import the modules next to it, which come before installed ones of the same name, as for a script.
    """
    file = Path(path).resolve()
    name = _module_name(file)
    if name not in sys.modules:
        spec = util.spec_from_file_location(name, file, loader=_Source(name, str(file)))
        if spec is None or spec.loader is None:
            raise ImportError(f"{path!r} is not a Python file")
        module = sys.modules[name] = util.module_from_spec(spec)
        try:
            with _siblings(str(file.parent)):
                spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def _module_name(file: Path) -> str:
    from hashlib import sha256  # here, because the library behind it costs start-up milliseconds

    return f"xaihub_file_{file.stem}_{sha256(str(file).encode()).hexdigest()[:8]}"


_folders: set[str] = set()  # of the files that `import_file` has imported


@contextmanager
def _siblings(folder: str) -> Iterator[None]:
    """Let imports find the modules in a folder first, and not those of the same name next to another file."""
    others = _folders - {folder}
    hidden = {name: module for name, module in sys.modules.items() if _folder_of(module) in others}
    hidden = {name: module for name, module in hidden.items() if not name.startswith("xaihub_file_")}
    for name in hidden:
        del sys.modules[name]
    _folders.add(folder)
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
        if folder not in sys.path:
            sys.path.append(folder)  # for imports inside functions
        for name, module in hidden.items():
            sys.modules.setdefault(name, module)


def _folder_of(module: object) -> str:
    file = getattr(module, "__file__", None)
    return str(Path(file).parent) if isinstance(file, str) else ""
