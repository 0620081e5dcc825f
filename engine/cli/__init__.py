"""The command line: `gossamer launch`, `gossamer join`, `gossamer demo`."""

import sys

from gossamer.engine.errors import ConfigurationError, GossamerError


def main() -> None:
    """Entry point of `gossamer`. An error is one sentence on stderr, never a traceback."""
    from gossamer.engine.cli.commands import app

    try:
        app(prog_name="gossamer")
    except ConfigurationError as error:
        print(f"gossamer: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except (GossamerError, OSError) as error:
        print(f"gossamer: {error}", file=sys.stderr)
        raise SystemExit(1) from None


__all__ = ["main"]
