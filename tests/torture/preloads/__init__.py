"""Libraries that are loaded into a server before its own, to do to it what no test could else.

Each is one C file, made by the machine's own compiler where it is needed: nothing of it is kept.
"""

import shutil
import subprocess
from pathlib import Path


def compiled(name: str, directory: Path) -> Path:
    """Return the library that is made of `<name>.c`."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    assert compiler, "the fault suite needs a C compiler, cc or gcc (on Debian: apt install gcc)"
    library = directory / f"{name}.so"
    source = Path(__file__).with_name(f"{name}.c")
    words = ("-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o", library, source)
    subprocess.run([compiler, *words, "-ldl"], check=True)
    return library
