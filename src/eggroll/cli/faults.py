"""What a command cannot mend and a person can: memory, disk, packages, devices; each in one line.

Any other exception is a fault of ours, and is shown with its traceback.
"""

from __future__ import annotations

import os
import re
import traceback

from eggroll.core.errors import is_out_of_memory
from eggroll.runs.folder import reason


def line_for(error: BaseException) -> str | None:
    """What was expected, what was got and how to mend it; None where only the traceback tells."""
    if is_out_of_memory(error):
        said = reason(error).rstrip(".")
        return (
            f"expected memory for what was asked, got {said}; lower --chunk-size (members at a time) or "
            "--population-size, and see eggroll doctor"
        )
    if isinstance(error, ImportError):
        return _package(error)
    if isinstance(error, OSError) and error.errno is not None:
        what = f"to read or write {error.filename}" if error.filename else "to read or write"
        what = "to write the output" if comes_of_printing(error) else what
        return f"expected {what}, got {error.strerror or reason(error)}; mend that and try again"
    if _passed("jax._src.xla_bridge", error):
        asked = os.environ.get("JAX_PLATFORMS", "")
        said = reason(error) if str(error) else "none that works"
        return (
            f"expected a device for JAX{f' with JAX_PLATFORMS={asked}' if asked else ''}, got {said}; "
            "JAX_PLATFORMS=cpu takes the processor, and eggroll doctor tells what there is"
        )
    return _our_own(error)


def comes_of_printing(error: BaseException) -> bool:
    """Whether standard output takes nothing any more."""
    return isinstance(error, OSError) and _raised_in("eggroll.cli", error)


def _package(error: ImportError) -> str | None:
    """A package that is missing, or broken."""
    from eggroll.doctor.packages import mend_for

    module = (error.name or "").partition(".")[0]
    if not module or module == "eggroll":
        return None
    state = "none" if isinstance(error, ModuleNotFoundError) else reason(error)
    return f"expected the package {module}, got {state}; {mend_for(module)}"


def _our_own(error: BaseException) -> str | None:
    """A refusal of `core`, which speaks as the house does and knows no command line."""
    text = str(error)
    says = re.fullmatch(r"expected [^\n]+, got [^\n]+", text) is not None
    return text if says and isinstance(error, ValueError | TypeError) and _raised_in("eggroll", error) else None


def _raised_in(package: str, error: BaseException) -> bool:
    """Whether the line that raised it is in a package of ours."""
    frames = list(traceback.walk_tb(error.__traceback__))
    name = str(frames[-1][0].f_globals.get("__name__", "")) if frames else ""
    return name == package or name.startswith(f"{package}.")


def _passed(module: str, error: BaseException) -> bool:
    """Whether the exception came by way of a module."""
    return any(frame.f_globals.get("__name__") == module for frame, _ in traceback.walk_tb(error.__traceback__))
