"""The subcommands and their flags.

What a subcommand needs it imports itself: checking a plan loads torch, which takes seconds, and
help should not.
"""

from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="Train one PyTorch model on machines joined by ordinary networks.",
    epilog="Begin with: gossamer demo",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
# What follows the script belongs to the script, whatever it looks like.
_PASS_THROUGH = {"allow_interspersed_args": False}

Script = Annotated[Path, typer.Argument(metavar="SCRIPT", help="Python script of each peer.")]
Args = Annotated[
    list[str] | None, typer.Argument(metavar="ARGS", help="Passed on to the script untouched.")
]
Compress = Annotated[
    str | None,
    typer.Option(
        metavar="LEVEL", help="What a peer sends, as in 1/64:2bit: 1 value of 64, with 2 bits each."
    ),
]
LocalSteps = Annotated[
    int | None, typer.Option(metavar="STEPS", help="Optimizer steps between two updates.")
]
PeerTimeout = Annotated[
    float | None,
    typer.Option(
        metavar="SECONDS",
        help="Silence until a peer is dead; every other deadline derives from it.",
    ),
]
Bind = Annotated[
    str | None, typer.Option(metavar="HOST:PORT", help="Where to listen; port 0: any free one.")
]
Advertise = Annotated[
    str | None,
    typer.Option(metavar="HOST:PORT", help="What other peers connect to, where that differs."),
]
Insecure = Annotated[
    bool,
    typer.Option("--insecure", help="Listen beyond this machine although nothing is encrypted."),
]
RunDir = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR", help="Folder for events, logs and summary. Default: runs/TIME-SCRIPT."
    ),
]
Json = Annotated[Path | None, typer.Option(metavar="FILE", help="Copy the summary to a file.")]


@app.callback(invoke_without_command=True)
def root(
    show_version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if show_version:
        print(f"gossamer {version('gossamer')}")
        raise typer.Exit


@app.command(
    context_settings=_PASS_THROUGH,
    epilog="Example: gossamer launch -n 4 --topology complete train.py --lr 3e-4",
)
def launch(
    script: Script,
    args: Args = None,
    *,
    n: Annotated[int, typer.Option("-n", metavar="PEERS", help="How many peers to start.")] = 1,
    topology: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Who talks to whom: ring, complete, exponential or torus."
        ),
    ] = None,
    compress: Compress = None,
    local_steps: LocalSteps = None,
    peer_timeout_seconds: PeerTimeout = None,
    bind: Bind = None,
    advertise: Advertise = None,
    insecure: Insecure = False,
    run_dir: RunDir = None,
    json: Json = None,
) -> None:
    """Start a run of N peers on this machine.

    Every peer runs SCRIPT. The bound endpoint is that of the first peer; more peers can come
    from other machines at any time with `gossamer join`.
    """
    from gossamer.engine.cli.launch import run_plan
    from gossamer.engine.cli.plan import Flags, plan_launch

    flags = Flags(
        topology=topology,
        compress=compress,
        local_steps=local_steps,
        peer_timeout_seconds=peer_timeout_seconds,
        bind=bind,
        advertise=advertise,
        insecure=insecure,
        run_dir=run_dir,
        json=json,
    )
    plan = plan_launch(n, script, args or [], flags)
    raise typer.Exit(run_plan(plan).status)


@app.command(
    context_settings=_PASS_THROUGH,
    epilog="Example: gossamer join tcp://10.0.0.5:7000 train.py --lr 3e-4",
)
def join(
    endpoint: Annotated[
        str, typer.Argument(metavar="tcp://HOST:PORT", help="Any peer of the run.")
    ],
    script: Script,
    args: Args = None,
    *,
    compress: Compress = None,
    local_steps: LocalSteps = None,
    peer_timeout_seconds: PeerTimeout = None,
    bind: Bind = None,
    advertise: Advertise = None,
    insecure: Insecure = False,
    run_dir: RunDir = None,
    json: Json = None,
) -> None:
    """Add one peer to a run that is going on, from this or another machine."""
    from gossamer.engine.cli.launch import run_plan
    from gossamer.engine.cli.plan import Flags, plan_join

    flags = Flags(
        compress=compress,
        local_steps=local_steps,
        peer_timeout_seconds=peer_timeout_seconds,
        bind=bind,
        advertise=advertise,
        insecure=insecure,
        run_dir=run_dir,
        json=json,
    )
    plan = plan_join(endpoint, script, args or [], flags)
    raise typer.Exit(run_plan(plan).status)


@app.command(epilog="Example: gossamer demo --peers 4 --steps 500")
def demo(
    peers: Annotated[int, typer.Option(metavar="N", help="Peers that train together.")] = 4,
    steps: Annotated[int, typer.Option(metavar="N", help="Steps of each peer.")] = 500,
    run_dir: RunDir = None,
    json: Json = None,
) -> None:
    """Train a small language model with several peers, then with one alone, and compare."""
    from gossamer.engine.cli.demo import run_demo

    raise typer.Exit(run_demo(peers, steps, run_dir, json))
