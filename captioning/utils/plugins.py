"""Import of classes that live outside the package, by a name such as "my_module:MyConfig"."""

from __future__ import annotations

import importlib
import os
import sys
from types import ModuleType
from typing import Any

from captioning.errors import UserError


def load_object(name: str, *, allow_code: bool) -> Any:
    """The object that "module:Name" names, its module imported from sys.path or the working folder.

    Args:
        allow_code: whether a module may be imported that is not imported yet. Importing runs its code, so
            names that come with somebody else's model need the user's consent.

    Raises:
        UserError: the name is malformed, the import is not allowed or fails, or the module has no such name.
    """
    module_name, _, attribute = name.partition(":")
    if not attribute.isidentifier() or not all(part.isidentifier() for part in module_name.split(".")):
        raise UserError(f"{name!r} is not of the form my_module:MyClass")
    module = sys.modules.get(module_name)
    if module is None:
        if not allow_code:
            raise UserError(
                f"{name!r} is code outside the captioning package; read {module_name} first, then allow it "
                "with --allow-code (in Python allow_code=True)"
            )
        module = _import(module_name)
    if not hasattr(module, attribute):
        raise UserError(
            f"{module_name} has no {attribute}; it defines {', '.join(_classes(module)) or 'no class'}"
        )
    return getattr(module, attribute)


def _import(name: str) -> ModuleType:
    """Import a module; the working folder stays on sys.path, so that data loading workers find it as well."""
    folder = os.getcwd()
    if folder not in sys.path:
        sys.path.append(folder)  # last: a file there never hides an installed package
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise UserError(
                f"no module {name} in {folder} or among the installed packages; run where it lies, "
                "or add its folder to PYTHONPATH"
            ) from error
        raise UserError(f"{name} cannot be imported: it needs the module {error.name}; install it") from error
    except Exception as error:  # whatever the module's code raises
        raise UserError(
            f"{name} cannot be imported ({type(error).__name__}: {error}); --debug shows where"
        ) from error


def _classes(module: ModuleType) -> list[str]:
    """Names of the classes that the module itself defines."""
    return [
        name
        for name, value in vars(module).items()
        if isinstance(value, type) and value.__module__ == module.__name__
    ]
