"""Runs a user's script as one peer.

    python -m gossamer.engine.cli.peer PARENT_PID script.py [args...]

The script sees what it would see under plain `python script.py`. What differs is how it ends: an
error of gossamer's is one sentence, a traceback has only the user's frames, signals end it quietly,
and it does not outlive its launcher.
"""

import ctypes
import os
import runpy
import signal
import sys
import traceback
from pathlib import Path
from types import FrameType, TracebackType
from typing import NoReturn

from gossamer.engine.errors import ConfigurationError, GossamerError

STATUS_FAILED = 1
STATUS_BAD_CONFIGURATION = 2
STATUS_INTERRUPTED = 128 + signal.SIGINT
STATUS_TERMINATED = 128 + signal.SIGTERM
_PR_SET_PDEATHSIG = 1


def run_script(script: Path, args: list[str]) -> None:
    """Run a script as `__main__`. Raises SystemExit when it fails."""
    sys.argv = [str(script), *args]
    if not sys.flags.safe_path:
        del sys.path[0]
    sys.path.insert(0, str(script.resolve().parent))
    try:
        runpy.run_path(str(script), run_name="__main__")
    except GossamerError as error:
        print(f"gossamer: {error}", file=sys.stderr)
        bad = isinstance(error, ConfigurationError)
        raise SystemExit(STATUS_BAD_CONFIGURATION if bad else STATUS_FAILED) from None
    except KeyboardInterrupt:
        raise SystemExit(STATUS_INTERRUPTED) from None
    except Exception as error:
        frames = _frames_of(script, error.__traceback__)
        traceback.print_exception(type(error), error, frames)
        raise SystemExit(STATUS_FAILED) from None


def _frames_of(script: Path, frames: TracebackType | None) -> TracebackType | None:
    """A traceback from the script's own first frame on; None when it never began to run."""
    while frames is not None and frames.tb_frame.f_code.co_filename != str(script):
        frames = frames.tb_next
    return frames


def _die_with_parent(parent: int) -> None:
    """Ask Linux for SIGTERM when the launcher dies, by whatever death."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it died before we asked
        raise SystemExit(STATUS_TERMINATED)


def _on_terminate(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(STATUS_TERMINATED)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell ignores it
    signal.signal(signal.SIGTERM, _on_terminate)
    _die_with_parent(int(sys.argv[1]))
    try:
        run_script(Path(sys.argv[2]), sys.argv[3:])
    finally:
        # From here on the interpreter only takes itself down: a signal ends that without a word.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
