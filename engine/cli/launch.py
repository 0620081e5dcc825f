"""Runs a plan from its title line to its summary."""

import sys
from dataclasses import dataclass
from pathlib import Path

from gossamer.engine.cli.display import display_on, new_console
from gossamer.engine.cli.plan import Plan
from gossamer.engine.cli.process import PeerProcess, status_of
from gossamer.engine.cli.supervise import Supervisor
from gossamer.engine.summary import SUMMARY_FILE, Summary, summarize, write


@dataclass(frozen=True, slots=True)
class Outcome:
    """A run that has ended.

    status: for the command to exit with; not 0 when a peer failed or the run was interrupted
    """

    summary: Summary
    status: int


def run_plan(plan: Plan) -> Outcome:
    """Run the peers of a plan, show them, pass their failures on, and write the summary."""
    console = new_console()
    folder = _from_here(plan.run_dir)
    console.print(f"[bold]{plan.title}[/bold]  [dim]{folder}[/dim]", soft_wrap=True)
    supervisor = Supervisor(plan, display_on(console))
    supervisor.run()
    peers = supervisor.peers
    exits = {peer.id: peer.exit or "" for peer in peers}
    summary = summarize(plan.run_dir, exits, seconds=supervisor.seconds)
    write(summary, plan.run_dir / SUMMARY_FILE)
    if plan.json is not None:
        write(summary, plan.json)
    console.print(f"[dim]summary: {folder / SUMMARY_FILE}[/dim]", soft_wrap=True)
    if supervisor.interrupted is not None:
        print(f"gossamer: ended by {supervisor.interrupted.name}", file=sys.stderr)
        return Outcome(summary, 128 + supervisor.interrupted)
    _pass_failures_on(peers)
    if not any(peer.failed or peer.history.progress for peer in peers):
        print(
            f"gossamer: no peer trained; does {plan.script.name} run its loop inside "
            "`with gossamer.engine.Engine(...)`?",
            file=sys.stderr,
        )
    return Outcome(summary, status_of(peers))


def _from_here(path: Path) -> Path:
    """The shorter way to write a path."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def _pass_failures_on(peers: list[PeerProcess]) -> None:
    """Print what failed peers left in their logs; what several of them say only once."""
    groups: dict[tuple[str, str], list[PeerProcess]] = {}
    for peer in peers:
        if peer.failed:
            groups.setdefault((peer.complaint(), peer.exit or ""), []).append(peer)
    failed = sum(len(group) for group in groups.values())
    for (complaint, exit_), group in groups.items():
        if PeerProcess.is_sentence(complaint) and len(groups) == 1 and group[0] is peers[0]:
            print(complaint, file=sys.stderr)
            continue
        names = ", ".join(peer.id for peer in group)
        print(f"\n── {names} {exit_} ──", file=sys.stderr)
        print(complaint or f"nothing in the log ({group[0].log})", file=sys.stderr)
    if failed:
        sys.stderr.flush()
