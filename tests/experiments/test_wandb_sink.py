"""The W&B sink: what it writes is read back from W&B's own files, and nothing that W&B does reaches the results."""

import contextlib
import gzip
import http.server
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.cli import parse_settings
from experiments.settings import RunSettings
from experiments.wandb_sink import WandbSink, WandbWarning
from experiments.wandb_sweep import sweep_file
from tests.experiments.wandb_offline import BLOCK, DamagedLog, read_run, read_runs, records

ROOT = Path(__file__).parents[2]
KEY = "0123456789abcdef0123456789abcdef01234567"
CONFIGS = [
    {"layer": 15, "position": "task_mean", "alphas": (0.1, 10.0, np.inf), "nested": {"folds": np.int64(5), "none": None}},
    {"layer": 16, "position": "prompt_last", "alphas": (0.1,), "nested": {"folds": np.int64(5), "none": None}},
]
CURVE = pd.DataFrame({"alpha": [0.1, 1.0, 10.0], "r2": [0.25, 0.5, np.nan], "mse": [3.0, 2.0, 1.5]})
PREDICTIONS = pd.DataFrame(
    {"task_id": ["é", "b", None], "utility": [0.5, np.nan, -1.5], "fold": [0, 1, 2], "held_out": [True, False, True]}
)


@pytest.fixture(autouse=True)
def nobody_is_logged_in(monkeypatch, tmp_path):
    """A machine without W&B's files and variables; the service that was started by the test before is kept."""
    for variable in [each for each in os.environ if each.startswith("WANDB_") and each != "WANDB_SERVICE"]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    import wandb

    wandb.setup()  # reads the variables once a process: before a test sets those of a sweep, whichever test comes first


@pytest.fixture
def probe(tmp_path) -> Path:
    path = tmp_path / "probe.safetensors"
    path.write_bytes(b"weights" * 100)
    return path


def log(sink: WandbSink, config: dict, artefacts: tuple[Path, ...] = (), **tables: pd.DataFrame) -> None:
    layer = config["layer"]
    metrics = {"r2": layer / 32, "held_out/pearson": np.float32(-0.5), "missing": np.nan}
    sink.log(config, metrics, name=f"L{layer}", curves={"ridge": CURVE}, tables=tables, artefacts=artefacts)


def child(script: str, *arguments: object, home: bool = True, **environment: str) -> subprocess.CompletedProcess:
    """Run a script in a process with a W&B service of its own."""
    inherited = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE" and (home or name != "HOME")}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(
        command, cwd=ROOT, env=inherited | environment, capture_output=True, text=True, timeout=120, check=False
    )


def files(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def lasting(directory: Path) -> dict[str, bytes]:
    """All files but the logs of W&B's service, which writes to them whenever it likes."""
    return {name: content for name, content in files(directory).items() if not name.endswith(".log")}


def test_every_number_of_two_configurations_is_read_back(tmp_path, probe, capfd):
    sink = WandbSink(tmp_path / "run", group="probes")
    for config in CONFIGS:
        log(sink, config, (probe,), predictions=PREDICTIONS, folds=CURVE)
    runs = {run.name: run for run in read_runs(tmp_path / "run")}
    assert set(runs) == {"L15", "L16"} and len({run.id for run in runs.values()}) == 2
    for run, config in zip((runs["L15"], runs["L16"]), CONFIGS, strict=True):
        assert (run.group, run.project, run.exit_code) == ("probes", "penchant", 0)
        said = {name: value for name, value in run.config.items() if name != "_wandb"}
        alphas = [0.1, 10.0, "inf"] if config["layer"] == 15 else [0.1]
        assert said == config | {"alphas": alphas, "nested": {"folds": 5, "none": None}}
        (row,) = (row for row in run.history if "r2" in row)
        assert row["r2"] == config["layer"] / 32 and row["held_out/pearson"] == -0.5 and np.isnan(row["missing"])
        assert run.summary["r2"] == row["r2"]
        assert run.series("ridge/alpha", "ridge/r2") == [(0.1, 0.25), (1, 0.5)]
        assert run.series("ridge/alpha", "ridge/mse") == [(0.1, 3), (1, 2), (10, 1.5)]
        assert run.metrics["ridge/mse"].step_metric == "ridge/alpha"
        assert run.table("predictions") == {
            "columns": ["task_id", "utility", "fold", "held_out"],
            "data": [["é", 0.5, 0, True], ["b", None, 1, False], [None, -1.5, 2, True]],
        }
        assert run.table("folds")["data"][2] == [10.0, None, 1.5]
        (artefact,) = (each for each in run.artefacts if each.type == "probe")
        (entry,) = artefact.manifest.contents
        assert entry.path == "probe.safetensors" and Path(entry.local_path).read_bytes() == probe.read_bytes()
        assert Path(entry.local_path).is_relative_to(tmp_path / "run"), "W&B's copy is not in the run directory"
    assert capfd.readouterr() == ("", ""), "W&B wrote to the screen"
    assert sink.note() == f"W&B: 2 run(s) on disk, not yet sent; `wandb sync {tmp_path / 'run' / 'wandb'}` sends them."


def test_only_what_was_asked_for_is_recorded(tmp_path):
    log(WandbSink(tmp_path, group="probes"), CONFIGS[0])
    (run,) = read_runs(tmp_path)
    assert run.kinds == {"header", "run", "telemetry", "metric", "summary", "history", "exit"} and run.host == ""
    written = files(tmp_path / "wandb")
    assert not any(str(ROOT).encode() in content for name, content in written.items() if name.endswith(".wandb"))
    assert not any("requirements" in name or "metadata" in name or "output" in name for name in written)


def test_running_again_adds_nothing(tmp_path, probe):
    for config in CONFIGS:
        log(WandbSink(tmp_path / "run", group="probes"), config, (probe,))
    before = lasting(tmp_path / "run")
    again = WandbSink(tmp_path / "run", group="probes")
    for config in (*CONFIGS, dict(reversed(CONFIGS[0].items()))):  # the order of keys is no part of a configuration
        log(again, config, (probe,))
    assert lasting(tmp_path / "run") == before
    log(WandbSink(tmp_path / "run", group="others"), CONFIGS[0])
    assert len(read_runs(tmp_path / "run")) == 3


def test_a_run_that_was_forgotten_is_written_again_in_its_own_place(tmp_path):
    for config in CONFIGS:
        log(WandbSink(tmp_path, group="probes"), config)
    before = {run.id: run.folder for run in read_runs(tmp_path)}
    remembered = tmp_path / "wandb" / "logged.json"
    kept = {run_id: entry for run_id, entry in json.loads(remembered.read_text()).items() if entry["name"] == "L15"}
    remembered.write_text(json.dumps(kept))
    for config in CONFIGS:
        log(WandbSink(tmp_path, group="probes"), config)
    after = read_runs(tmp_path)
    assert {run.id for run in after} == set(before) and len(after) == 2
    assert {entry["folder"] for entry in json.loads(remembered.read_text()).values()} == {run.folder.name for run in after}


KILLED = """
import os, signal, sys
import wandb
from experiments.wandb_sink import WandbSink

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

sink = WandbSink(sys.argv[1], group="probes")
sink.log({"layer": 15}, {"r2": 0.5}, name="L15")
if sys.argv[3] == "halfway":
    wandb.Run.log_artifact = die
else:
    sink._remember = die
sink.log({"layer": 16}, {"r2": 0.5}, name="L16", artefacts=[sys.argv[2]])
"""


@pytest.mark.parametrize("instant", ["halfway", "before it is remembered"])
def test_a_killed_sweep_resumes_without_duplicate_runs(tmp_path, probe, instant):
    killed = child(KILLED, tmp_path / "run", probe, instant)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert len(json.loads((tmp_path / "run" / "wandb" / "logged.json").read_text())) == 1
    finished, half = sorted(tmp_path.glob("run/wandb/offline-run-*"), key=lambda folder: folder.stat().st_ctime_ns)
    before = lasting(finished)
    assert read_run(finished).name == "L15" and read_run(finished).exit_code == 0, "what was logged survives the kill"
    for layer in (15, 16):
        log(WandbSink(tmp_path / "run", group="probes"), {"layer": layer}, (probe,) if layer == 16 else ())
    runs = read_runs(tmp_path / "run")
    assert sorted((run.name, run.exit_code) for run in runs) == [("L15", 0), ("L16", 0)]
    assert lasting(finished) == before and half.name.split("-")[-1] in {run.id for run in runs}
    assert sum(each.type == "probe" for run in runs for each in run.artefacts) == 1
    assert all("r2" in run.summary for run in runs)


def test_without_wandb_there_is_one_warning_for_each_attempt_and_no_error(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    sink = WandbSink(tmp_path, group="probes")
    with pytest.warns(WandbWarning) as said:
        for layer in range(5):
            log(sink, {"layer": layer})
    assert len(said) == 2, "a sink stops after two failures in a row"
    assert re.search(r"failed on 'L0': ModuleNotFoundError.*The same command tries again", str(said[0].message))
    assert f"Results are in {tmp_path}" in str(said[0].message) and "wandb sync" in str(said[0].message)
    assert not any("\n" in str(each.message) for each in said)
    assert files(tmp_path) == {}


@pytest.mark.parametrize("step", ["init", "Run.log", "Run.finish", "Run.define_metric"])
def test_a_failure_of_any_step_is_one_warning_and_the_next_configuration_is_logged(tmp_path, monkeypatch, step):
    import wandb

    def fail(*_, **__):
        raise RuntimeError("out of\norder")

    owner = wandb.Run if step.startswith("Run.") else wandb
    sink = WandbSink(tmp_path, group="probes")
    with (
        monkeypatch.context() as broken,
        pytest.warns(WandbWarning, match="failed on 'L15': RuntimeError: out of order") as said,
    ):
        broken.setattr(owner, step.removeprefix("Run."), fail)
        log(sink, CONFIGS[0])
    assert len(said) == 1
    log(sink, CONFIGS[1])
    assert [run.name for run in read_runs(tmp_path)] == ["L16"]
    log(WandbSink(tmp_path, group="probes"), CONFIGS[0])
    assert sorted(run.name for run in read_runs(tmp_path)) == ["L15", "L16"]


def test_a_service_that_is_killed_costs_one_run_and_is_started_again(tmp_path, monkeypatch):
    import wandb

    sink = WandbSink(tmp_path, group="probes")
    original = wandb.Run.define_metric

    def kill_the_service(run, *arguments, **keywords):
        service = wandb.setup()._connection
        service._proc._process.kill()
        service._proc._process.wait()
        return original(run, *arguments, **keywords)

    with monkeypatch.context() as broken, pytest.warns(WandbWarning, match="failed on 'L15'") as said:
        broken.setattr(wandb.Run, "define_metric", kill_the_service)
        log(sink, CONFIGS[0])
    assert len(said) == 1
    log(sink, CONFIGS[1])
    log(sink, CONFIGS[0])
    assert sorted(run.name for run in read_runs(tmp_path)) == ["L15", "L16"]


def test_a_run_that_wandb_never_completes_is_not_taken_for_logged(tmp_path, monkeypatch):
    import wandb

    finish = wandb.Run.finish
    sink = WandbSink(tmp_path, group="probes", patience=1.0)
    with monkeypatch.context() as broken, pytest.warns(WandbWarning, match=r"is not complete after 1.0 s; is the disk full\?"):
        broken.setattr(wandb.Run, "finish", lambda run, exit_code=None: finish(run, exit_code) if exit_code else None)
        log(sink, CONFIGS[0])
    assert not list(tmp_path.glob("wandb/*run-*")) and sink.note() == ""


def test_what_cannot_be_logged_costs_its_own_run_only(tmp_path):
    sink = WandbSink(tmp_path / "run", group="probes")
    with pytest.warns(WandbWarning, match="'L15': ValueError: Path is not a file"):
        log(sink, CONFIGS[0], (tmp_path / "not there",))
    with pytest.warns(WandbWarning, match=r"'L16': ValueError: \['r2'\] are names of metrics and of tables"):
        log(sink, CONFIGS[1], r2=CURVE)
    assert not list((tmp_path / "run").glob("wandb/*run-*"))


def test_a_directory_that_cannot_be_written_is_a_warning(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.warns(WandbWarning, match="NotADirectoryError|FileExistsError"):
        log(WandbSink(tmp_path / "file", group="probes"), CONFIGS[0])


def test_a_run_of_the_caller_stays_the_current_one(tmp_path, monkeypatch):
    import wandb

    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    with wandb.init(mode="offline", dir=tmp_path / "own", settings=wandb.Settings(silent=True, console="off")) as own:
        log(WandbSink(tmp_path / "run", group="probes"), CONFIGS[0])
        assert wandb.run is own
        own.log({"mine": 1})
    wandb.teardown()  # W&B writes the end of a file after finish() has returned; the sink waits for it
    (theirs,) = read_runs(tmp_path / "own")
    assert theirs.summary["mine"] == 1 and theirs.exit_code == 0 and "r2" not in theirs.summary
    assert len(read_runs(tmp_path / "run")) == 1


def test_a_caller_who_has_wandb_talk_hears_nothing_of_it_here(tmp_path, monkeypatch, capfd):
    import wandb

    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    wandb.teardown()
    wandb.setup()
    log(WandbSink(tmp_path, group="probes"), CONFIGS[0])
    wandb.teardown()
    assert capfd.readouterr() == ("", "")


def test_the_environment_is_left_as_it_was(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "false")
    before = dict(os.environ)
    log(WandbSink(tmp_path, group="probes"), CONFIGS[0])
    after = dict(os.environ)
    for variables in (before, after):
        variables.pop("WANDB_SERVICE", None)  # W&B's own note to itself
    assert after == before


@pytest.mark.parametrize(
    ("environment", "asked", "expected", "warning"),
    [
        ({}, "auto", "offline", None),
        ({"WANDB_API_KEY": KEY}, "auto", "online", None),
        ({"netrc": f"machine api.wandb.ai login user password {KEY}"}, "auto", "online", None),
        ({"WANDB_API_KEY": KEY, "WANDB_MODE": "offline"}, "auto", "offline", None),
        ({"WANDB_API_KEY": KEY, "WANDB_MODE": "dryrun"}, "auto", "offline", None),
        ({"WANDB_API_KEY": KEY, "WANDB_MODE": "disabled"}, "auto", None, None),
        ({"WANDB_API_KEY": KEY, "WANDB_MODE": "offline"}, "online", "online", None),
        ({"WANDB_API_KEY": KEY}, "offline", "offline", None),
        ({"WANDB_API_KEY": KEY}, "disabled", None, None),
        ({"WANDB_API_KEY": "too short"}, "auto", "offline", "stays offline: AuthenticationError"),
        ({"WANDB_MODE": "online"}, "auto", "offline", "nobody is logged in"),
        ({}, "online", "offline", "nobody is logged in"),
        ({"WANDB_MODE": "sometimes"}, "auto", None, "'sometimes'; expected online, offline or disabled"),
    ],
)
def test_online_needs_a_login_and_that_nobody_said_otherwise(
    tmp_path, monkeypatch, recwarn, environment, asked, expected, warning
):
    import wandb

    for variable, value in environment.items():
        if variable == "netrc":
            Path(os.environ["NETRC"]).write_text(value.replace("api.wandb.ai", wandb.Settings().base_url.split("//")[1]))
        else:
            monkeypatch.setenv(variable, value)
    begun = []

    def begin(**keywords):
        begun.append(keywords["mode"])
        raise KeyboardInterrupt

    monkeypatch.setattr(wandb, "init", begin)
    with contextlib.suppress(KeyboardInterrupt):
        log(WandbSink(tmp_path, group="probes", mode=asked), CONFIGS[0])
    assert begun == ([expected] if expected else [])
    said = [str(each.message) for each in recwarn if each.category is WandbWarning]
    assert len(said) == (warning is not None) and all(warning in each for each in said)
    assert not any(KEY.encode() in content for content in files(tmp_path / "wandb").values())


class Server(http.server.ThreadingHTTPServer):
    """As much of a W&B server as it takes to accept runs, until it is told to be deaf."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.runs: dict[str, dict] = {}
        self.history: dict[str, list[dict]] = {}
        self.said: list[str] = []
        self.deaf = threading.Event()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers to GraphQL and to streams of history; other things fail, as in a server that has no room for artefacts."""

    protocol_version = "HTTP/1.1"
    server: Server

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            content = gzip.decompress(content)
        self.server.said.append(content.decode())
        message = json.loads(content)
        answer = self._graphql(message) if self.path == "/graphql" else self._stream(message)
        encoded = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(encoded)))
        self.end_headers()
        self.wfile.write(encoded)

    def _graphql(self, message: dict) -> dict:
        asked = message.get("variables") or {}
        if "upsertBucket" in message["query"]:
            run = self.server.runs.setdefault(asked["name"], {})
            run |= {name: value for name, value in asked.items() if value is not None}
            project = {"id": "p", "name": run["project"], "entity": {"id": "e", "name": "me"}}
            bucket = {"id": "b", "name": asked["name"], "displayName": "", "config": run["config"], "project": project}
            return {"data": {"upsertBucket": {"bucket": bucket, "inserted": True}}}
        if "viewer" in message["query"]:
            who = {"id": "u", "entity": "me", "username": "me", "email": "", "admin": False, "flags": "{}"}
            return {"data": {"viewer": who | {"teams": {"edges": []}}}}
        return {"data": None, "errors": [{"message": "no such thing"}]}

    def _stream(self, message: dict) -> dict:
        while self.server.deaf.is_set():
            time.sleep(0.05)
        rows = message.get("files", {}).get("wandb-history.jsonl", {}).get("content", [])
        self.server.history.setdefault(self.path.split("/")[4], []).extend(map(json.loads, rows))
        return {}

    def log_message(self, format: str, *_) -> None:
        pass


@pytest.fixture
def server():
    with Server() as server:
        yield server
        server.shutdown()


ONLINE = """
import sys, time
import pandas as pd
from experiments.wandb_sink import WandbSink

sink = WandbSink(sys.argv[1], group="probes", patience=2.0)
curves = {"ridge": pd.DataFrame({"alpha": [0.1, 1.0, 10.0], "mse": [3.0, 2.0, 1.5]})}
for layer in (15, 16):
    started = time.monotonic()
    sink.log({"layer": layer}, {"r2": layer / 32}, name=f"L{layer}", curves=curves, artefacts=sys.argv[2:])
    print(time.monotonic() - started)
print(sink.note())
"""


def test_a_user_who_is_logged_in_gets_the_runs_at_once(tmp_path, server):
    done = child(ONLINE, tmp_path, home=False, WANDB_API_KEY=KEY, WANDB_BASE_URL=server.url)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert {run["displayName"]: run["groupName"] for run in server.runs.values()} == {"L15": "probes", "L16": "probes"}
    for name, run in server.runs.items():
        assert run["program"] == "penchant" and "host" not in run
        layer = json.loads(run["config"])["layer"]["value"]
        assert [row["r2"] for row in server.history[name] if "r2" in row] == [layer / 32]
        assert [row["ridge/mse"] for row in server.history[name] if "ridge/mse" in row] == [3, 2, 1.5]
    assert {run.name for run in read_runs(tmp_path)} == {"L15", "L16"}, "what was sent is on disk as well"
    assert done.stdout.splitlines()[2:] == [""], "nothing is left to be sent"
    sent = "".join(server.said)
    assert str(ROOT) not in sent
    assert not any(KEY.encode() in content for content in files(tmp_path).values())


def test_what_the_server_does_not_take_is_written_offline(tmp_path, server, probe):
    done = child(ONLINE, tmp_path / "run", probe, WANDB_API_KEY=KEY, WANDB_BASE_URL=server.url)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("WandbWarning") == 1 and "stays offline from now on" in done.stderr
    runs = read_runs(tmp_path / "run")
    assert sorted((run.name, run.exit_code) for run in runs) == [("L15", 0), ("L16", 0)]
    assert all(run.folder.name.startswith("offline-run-") for run in runs)
    assert all(sum(each.type == "probe" for each in run.artefacts) == 1 for run in runs)


def test_a_network_that_is_gone_costs_a_few_seconds_once(tmp_path):
    done = child(ONLINE, tmp_path, HOME="/dev/null/nobody", WANDB_API_KEY=KEY, WANDB_BASE_URL="http://127.0.0.1:9")
    assert done.returncode == 0 and done.stderr.count("WandbWarning") == 1, done.stderr
    assert len(done.stderr.splitlines()) == 2, "a home that cannot be written is no reason to say more"
    first, second, note = done.stdout.splitlines()
    assert float(first) >= 2.0 > float(second)
    assert sorted((run.name, run.exit_code) for run in read_runs(tmp_path)) == [("L15", 0), ("L16", 0)]
    assert note.startswith("W&B: 2 run(s) on disk")


def test_a_network_that_goes_while_a_run_is_sent_leaves_it_complete_on_disk(tmp_path, server):
    server.deaf.set()
    done = child(ONLINE, tmp_path, WANDB_API_KEY=KEY, WANDB_BASE_URL=server.url)
    server.deaf.clear()
    assert done.returncode == 0 and done.stderr.count("WandbWarning") == 1, done.stderr
    runs = {run.name: run for run in read_runs(tmp_path)}
    assert (runs["L15"].exit_code, runs["L16"].exit_code) == (0, 0) and len(runs) == 2
    assert runs["L15"].series("ridge/alpha", "ridge/mse") == [(0.1, 3), (1, 2), (10, 1.5)]
    assert f"`wandb sync --include-online {runs['L15'].folder}` sends" in done.stderr
    assert float(done.stdout.splitlines()[1]) < 2.0 and "1 run(s) on disk" in done.stdout


class SweepSettings(RunSettings):
    """Settings like those of a sweep over probes."""

    layers: tuple[int, ...] = (1, 2)
    positions: tuple[str, ...] = ("prompt_last",)
    alpha: float = 1.0
    folds: int = 5


AGENT = """
import argparse
from experiments.wandb_sink import WandbSink

parser = argparse.ArgumentParser()
parser.add_argument("--out")
parser.add_argument("--layers", nargs="+", type=int, default=[1, 2])
parser.add_argument("--positions")
given = parser.parse_args()
sink = WandbSink(given.out, group="probes")
for layer in given.layers:
    sink.log({"layer": layer, "positions": given.positions}, {"r2": layer / 32}, name="from the agent")
"""


def run_agent(sweep: str, run_id: str, directory: Path, monkeypatch, **chosen: object) -> subprocess.CompletedProcess:
    """What `wandb agent` does when the server has chosen a configuration; what it starts is run to its end."""
    from wandb import wandb_agent

    done = []

    def start(env: dict, command: list[str], **_) -> SimpleNamespace:
        inherited = {name: value for name, value in env.items() if name != "WANDB_SERVICE"}
        done.append(subprocess.run(command, env=inherited, capture_output=True, text=True, timeout=120, check=False))
        return SimpleNamespace()

    for variable in ("WANDB_DIR", "WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH"):
        monkeypatch.setenv(variable, str(directory / "agent"))  # the agent changes them; they are to be as before
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep")
    monkeypatch.setattr(wandb_agent, "AgentProcess", start)
    agent = wandb_agent.Agent(api=None, queue=None)
    config = yaml.safe_load(sweep)
    agent._sweep_command = config["command"]
    arguments = {name: {"value": value} for name, value in chosen.items()}
    response = agent._process_command({"type": "run", "run_id": run_id, "program": config["program"], "args": arguments})
    assert "exception" not in response, response
    return done[0]


def test_an_agent_of_a_sweep_runs_one_configuration_into_its_own_run(tmp_path, monkeypatch):
    (tmp_path / "program.py").write_text(AGENT)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    sweep = sweep_file(
        [str(tmp_path / "program.py"), "--out", str(tmp_path / "run")],
        {"layers": [15, 16], "positions": ["task_mean", "turn_boundary:-1"]},
        metric="r2",
        goal="maximize",
    )
    done = run_agent(sweep, "agentsrun", tmp_path, monkeypatch, layers=16, positions="turn_boundary:-1")
    assert (done.returncode, done.stderr) == (0, "")
    (run,) = read_runs(tmp_path / "run")
    assert (run.id, run.group, run.sweep, run.exit_code) == ("agentsrun", "probes", "sweep", 0)
    assert run.config["layer"] == 16 and run.config["positions"] == "turn_boundary:-1" and run.summary["r2"] == 0.5


def test_an_agent_has_no_second_run_for_a_process_with_several_configurations(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep")
    monkeypatch.setenv("WANDB_RUN_ID", "agentsrun")
    sink = WandbSink(tmp_path, group="probes")
    log(sink, CONFIGS[0])
    with pytest.warns(WandbWarning, match="'L16': .*one run for this process, which has several configurations") as said:
        log(sink, CONFIGS[1])
        log(sink, CONFIGS[0])
    assert len(said) == 1
    assert [(run.id, run.name) for run in read_runs(tmp_path)] == [("agentsrun", "L15")]


def test_a_sweep_file_says_what_wandb_needs():
    text = sweep_file(
        ["penchant", "probe_sweep", "--config", "probes.yaml"],
        {"layers": np.array([15, 16]), "alpha": {"min": 1e-3, "max": 1e3, "distribution": "log_uniform_values"}},
        metric="held_out/r2",
        goal="maximize",
        method="random",
    )
    assert yaml.safe_load(text) == {
        "program": "penchant",
        "command": ["${env}", "${program}", "probe_sweep", "--config", "probes.yaml", "${args}"],
        "project": "penchant",
        "method": "random",
        "metric": {"name": "held_out/r2", "goal": "maximize"},
        "parameters": {
            "layers": {"values": [15, 16]},
            "alpha": {"min": 0.001, "max": 1000.0, "distribution": "log_uniform_values"},
        },
    }


@settings(max_examples=25)
@given(
    layers=st.integers(0, 100),
    positions=st.from_regex(r"[a-z_]{1,12}(:[+-]?\d)?", fullmatch=True),
    alpha=st.floats(allow_nan=False, allow_infinity=False),
)
def test_every_value_of_a_sweep_arrives_through_the_command_line(layers, positions, alpha):
    from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

    chosen = {"layers": layers, "positions": positions, "alpha": alpha}
    sweep = yaml.safe_load(
        sweep_file(["penchant", "x"], {name: [value] for name, value in chosen.items()}, metric="r2", goal="maximize")
    )
    sent = {name: {"value": spec["values"][0]} for name, spec in sweep["parameters"].items()}
    parsed = parse_settings("x", SweepSettings, create_sweep_command_args({"args": sent})["args"], "")
    assert (parsed.layers, parsed.positions, parsed.alpha) == ((layers,), (positions,), alpha)


@pytest.mark.parametrize(
    ("command", "parameters", "message"),
    [
        ([], {"layers": [1]}, "needs a command and parameters"),
        (["penchant"], {}, "needs a command and parameters"),
        (["penchant"], {"layers": []}, "'layers' has an empty list"),
        (
            ["penchant"],
            {"layers": [[1, 2]]},
            r"'layers' has the value \[1, 2\], which an agent would pass as --layers=\[1, 2\]",
        ),
        (["penchant"], {"demean": [True, False]}, "'demean' has the value True"),
        (["penchant"], {"alpha": {"min": 0.1, "max": 1.0}}, "'alpha' has no values, which method 'grid' needs"),
        (["penchant"], {"alpha": {"minimum": 0.1}}, r"'alpha' has \['minimum'\]; expected values or some of"),
    ],
)
def test_a_sweep_that_no_agent_could_run_is_an_error_that_says_why(command, parameters, message):
    with pytest.raises(ValueError, match=message):
        sweep_file(command, parameters, metric="r2", goal="maximize")


def test_a_mode_that_is_none_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="'sometimes'; expected auto, offline, online or disabled"):
        WandbSink(tmp_path, group="probes", mode="sometimes")  # pyright: ignore[reportArgumentType]


def test_the_reader_follows_records_over_blocks_and_refuses_damage(tmp_path):
    config = {"layer": 1, "long": np.random.default_rng(0).bytes(2 * BLOCK).hex()}
    WandbSink(tmp_path, group="probes").log(config, {"r2": 1.0}, name="long")
    (run,) = read_runs(tmp_path)
    assert run.config["long"] == config["long"]
    (path,) = run.folder.glob("run-*.wandb")
    whole = path.read_bytes()
    assert len(whole) > 4 * BLOCK
    for place in (2, 9, 40, BLOCK + 3, 2 * BLOCK, len(whole) - 1):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(DamagedLog):
            list(records(path))
    path.write_bytes(whole[:-3])
    with pytest.raises(DamagedLog):
        read_run(run.folder)
