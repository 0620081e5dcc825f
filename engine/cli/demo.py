"""`gossamer demo`: the same model, text and number of steps, together and alone."""

import sys
from pathlib import Path

from rich import box
from rich.table import Table

import gossamer.engine
from gossamer.engine.cli.display import new_console
from gossamer.engine.cli.launch import run_plan
from gossamer.engine.cli.plan import Flags, plan_launch
from gossamer.engine.cli.table import UNKNOWN, bytes_text, duration_text, ratio_text
from gossamer.engine.errors import ConfigurationError
from gossamer.engine.summary import Summary, write

EXAMPLE = Path("examples") / "charlm.py"


class DemoSummary(Summary, kw_only=True):
    """The summary of the peers that trained together, and that of the one alone."""

    alone: Summary


def run_demo(peers: int, steps: int, run_dir: Path | None, json: Path | None) -> int:
    """Run both, print the comparison, and return the exit status.

    json: file for the DemoSummary
    """
    script = example_script()
    if steps < 1:
        raise ConfigurationError(f"--steps is {steps}; train for at least one, as in --steps 500")
    args = ["--steps", str(steps)]
    # Planned before the first begins, so that what cannot be written is said at once.
    folder = plan_launch(peers, script, args, Flags(run_dir=run_dir, json=json)).run_dir
    together_dir, alone_dir = folder / "together", folder / "alone"
    plan = plan_launch(peers, script, args, Flags(run_dir=together_dir))
    together = run_plan(plan)
    if together.status:
        return together.status
    alone = run_plan(plan_launch(1, script, args, Flags(run_dir=alone_dir)))
    if alone.status:
        return alone.status
    new_console().print(comparison(together.summary, alone.summary))
    if json is not None:
        fields = {name: getattr(together.summary, name) for name in Summary.__struct_fields__}
        write(DemoSummary(alone=alone.summary, **fields), json)
    if not together.summary.digests_agree:
        print(
            "gossamer: the peers ended with different shared bases; "
            f"please report this with the folder {together_dir}",
            file=sys.stderr,
        )
        return 1
    return 0


def example_script() -> Path:
    """The example in the checkout that the package was installed from."""
    package = Path(gossamer.engine.__file__).resolve().parent
    script = package.parent / EXAMPLE
    if not script.is_file():
        raise ConfigurationError(
            f"the demo needs {EXAMPLE}, which lies beside the sources only; clone the repository "
            "and run `make demo` there, or launch a script of your own with `gossamer launch`"
        )
    return script


def comparison(together: Summary, alone: Summary) -> Table:
    """The final table of the demo. Bytes are the mean of the peers."""
    count = len(together.peers)
    sent = sum(p.bytes_sent for p in together.peers) / count
    dense = sum(p.bytes_dense for p in together.peers) / count
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    table.add_column(f"{count} peers together", justify="right", style="bold")
    table.add_column("one peer alone", justify="right")
    table.add_row("steps of each peer", f"{together.peers[0].steps}", f"{alone.peers[0].steps}")
    table.add_row("validation loss", _loss(together.val_loss), _loss(alone.val_loss))
    table.add_row("sent by each peer", bytes_text(sent), UNKNOWN)
    table.add_row("the same with dense all-reduce", bytes_text(dense), UNKNOWN)
    table.add_row("times fewer bytes", ratio_text(dense, sent), UNKNOWN)
    agree = "[green]yes[/green]" if together.digests_agree else "[bold red]NO[/bold red]"
    table.add_row("all peers hold the same bits", agree, UNKNOWN)
    table.add_row("time", duration_text(together.seconds), duration_text(alone.seconds))
    return table


def _loss(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.3f}"
