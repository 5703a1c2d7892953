"""Finds the files beside the code that ship with it: the Lua scripts and the SQL migrations.

An installed package carries them inside itself, a checkout beside the package.
"""

from pathlib import Path

from service.errors import ConfigurationError

_PACKAGE = Path(__file__).resolve().parent


def lua_directory() -> Path:
    """Return the directory of the Lua scripts."""
    return _directory("lua")


def sql_directory() -> Path:
    """Return the directory of the migrations."""
    return _directory("sql")


def is_checkout() -> bool:
    """Tell whether the files are those of a checkout, where a new one may be added."""
    return not (_PACKAGE / "sql").is_dir() and (_PACKAGE.parent / "pyproject.toml").is_file()


def _directory(name: str) -> Path:
    for directory in (_PACKAGE / name, _PACKAGE.parent / name):
        if directory.is_dir():
            return directory
    msg = f"the {name}/ directory is missing beside {_PACKAGE}; the installation is incomplete"
    raise ConfigurationError(msg)
