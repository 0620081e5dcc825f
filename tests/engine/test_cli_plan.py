import os
from pathlib import Path

import pytest

from gossamer.engine.cli.plan import Flags, Plan, plan_join, plan_launch
from gossamer.engine.errors import ConfigurationError


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for key in [key for key in os.environ if key.startswith("GOSSAMER_")]:
        monkeypatch.delenv(key)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "train.py"
    path.write_text("")
    return path


def variables(plan: Plan, peer: str) -> dict[str, str]:
    prefix = "GOSSAMER_"
    return {k[len(prefix) :]: v for k, v in plan.environments[peer].items() if k.startswith(prefix)}


def test_launch_gives_peers_only_what_was_asked_for(script: Path) -> None:
    plan = plan_launch(2, script, [], Flags(run_dir=Path("out")))
    out = script.parent / "out"
    assert variables(plan, "peer-1") == {
        "RUN": "out",
        "RUN_DIR": str(out),
        "PEER": "peer-1",
        "PEERS": "2",
        "RENDEZVOUS": str(out / "rendezvous"),
    }


def test_launch_passes_every_flag_on(script: Path) -> None:
    flags = Flags(
        topology="torus",
        compress="1/64:1bit",
        local_steps=4,
        peer_timeout_seconds=2.5,
        bind="127.0.0.1:7001",
        run_dir=Path("out"),
    )
    plan = plan_launch(1, script, ["--lr", "3"], flags)
    given = variables(plan, "peer-0")
    assert given["TOPOLOGY"] == "torus"
    assert given["COMPRESS"] == "1/64:1bit"
    assert (given["LOCAL_STEPS"], given["PEER_TIMEOUT"]) == ("4", "2.5")
    assert given["BIND"] == "tcp://127.0.0.1:7001"
    assert plan.peer_timeout == 2.5
    assert plan.args == ("--lr", "3")


def test_launch_binds_the_other_peers_to_free_ports_of_the_same_host(script: Path) -> None:
    flags = Flags(bind="0.0.0.0:7000", advertise="10.0.0.5:7000", insecure=True)
    plan = plan_launch(2, script, [], flags)
    assert variables(plan, "peer-0")["ADVERTISE"] == "tcp://10.0.0.5:7000"
    assert variables(plan, "peer-1")["BIND"] == "tcp://10.0.0.5:0"
    assert "ADVERTISE" not in variables(plan, "peer-1")


def test_launch_divides_the_cores_unless_the_user_did(
    script: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = plan_launch(1000, script, [], Flags(run_dir=Path("a")))
    assert many.environments["peer-999"]["OMP_NUM_THREADS"] == "1"
    assert "OMP_NUM_THREADS" not in plan_launch(1, script, [], Flags()).environments["peer-0"]
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    own = plan_launch(1000, script, [], Flags(run_dir=Path("b")))
    assert own.environments["peer-0"]["OMP_NUM_THREADS"] == "7"


def test_launch_does_not_inherit_the_identity_of_another_run(
    script: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOSSAMER_JOIN", "tcp://10.0.0.9:1")
    monkeypatch.setenv("GOSSAMER_COMPRESS", "1/64:1bit")
    given = variables(plan_launch(1, script, [], Flags()), "peer-0")
    assert "JOIN" not in given
    assert given["COMPRESS"] == "1/64:1bit"


def test_run_directories_of_the_same_second_differ(script: Path) -> None:
    first = plan_launch(1, script, [], Flags()).run_dir
    second = plan_launch(1, script, [], Flags()).run_dir
    assert first != second
    assert first.parent == second.parent == script.parent / "runs"
    assert first.is_dir()
    assert second.name.count("train") == 1


def test_join_has_one_peer_with_an_id_of_its_own(script: Path) -> None:
    plans = [plan_join("tcp://10.0.0.5:7000", script, [], Flags()) for _ in range(2)]
    ids = [next(iter(plan.environments)) for plan in plans]
    assert ids[0] != ids[1]
    given = variables(plans[0], ids[0])
    assert (given["JOIN"], given["PEERS"]) == ("tcp://10.0.0.5:7000", "1")
    assert "RENDEZVOUS" not in given


@pytest.mark.parametrize(
    ("peers", "flags", "named"),
    [
        (0, Flags(), "-n is 0"),
        (-3, Flags(), "-n is -3"),
        (2, Flags(topology="star"), "'star'"),
        (2, Flags(compress="1/3"), "'1/3'"),
        (2, Flags(local_steps=0), "'0'"),
        (2, Flags(peer_timeout_seconds=-1.0), "'-1.0'"),
        (2, Flags(peer_timeout_seconds=float("nan")), "'nan'"),
        (2, Flags(bind="nonsense"), "'tcp://nonsense'"),
        (2, Flags(bind="127.0.0.1:99999"), "99999"),
        (2, Flags(bind="10.0.0.5:7000"), "--insecure"),
        (2, Flags(bind="0.0.0.0:7000", insecure=True), "--advertise"),
        (2, Flags(json=Path("missing/folder/s.json")), "missing/folder/s.json"),
        (2, Flags(json=Path()), "'.'"),
        (2, Flags(run_dir=Path("train.py/x")), "train.py/x"),
    ],
)
def test_launch_refuses_what_it_cannot_start(
    script: Path, peers: int, flags: Flags, named: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        plan_launch(peers, script, [], flags)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (script.parent / "runs").exists()


def test_launch_refuses_a_missing_script(script: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"no script 'nowhere\.py'"):
        plan_launch(1, Path("nowhere.py"), [], Flags())
    with pytest.raises(ConfigurationError, match="is not a file"):
        plan_launch(1, script.parent, [], Flags())


@pytest.mark.parametrize("endpoint", ["nonsense", "10.0.0.5:7000", "tcp://host", "tcp://:1", ""])
def test_join_refuses_what_is_no_endpoint(script: Path, endpoint: str) -> None:
    with pytest.raises(ConfigurationError, match="tcp://HOST:PORT"):
        plan_join(endpoint, script, [], Flags())


def test_launch_refuses_a_directory_that_holds_a_run(script: Path) -> None:
    (script.parent / "old" / "peer-0").mkdir(parents=True)
    (script.parent / "old" / "peer-0" / "events.jsonl").touch()
    with pytest.raises(ConfigurationError, match="already holds a run"):
        plan_launch(1, script, [], Flags(run_dir=Path("old")))
