"""Data sets on the hub: asked for over HTTP from a server that answers like the hub's, on this machine."""

import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pandas as pd
import pytest

from elicit import load_hub_tasks
from elicit.hub import PRESETS, hub_source
from elicit.tasks import TaskError

COMMIT = "0" * 40
ALPACA = pd.DataFrame(
    {"instruction": ["Name three rivers.", "Sort these."], "input": ["", "3, 1, 2"], "output": ["...", "..."]}
)
WILDCHAT = pd.DataFrame(
    {
        "conversation_hash": ["h1", "h2", "h3"],
        "conversation": [
            [{"role": "user", "content": f"Question {n}?"}, {"role": "assistant", "content": "Yes."}] for n in range(3)
        ],
        "language": ["English", "French", "English"],
        "toxic": [False, False, True],
    }
)


@contextmanager
def hub(repo: str, files: dict[str, bytes]):
    """A server of one data set; `asked` collects the paths that were requested."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_HEAD(self):
            self.do_GET(body=False)

        def do_GET(self, body: bool = True):
            asked.append(self.path)
            if self.path.startswith(f"/api/datasets/{repo}/revision/refs%2Fconvert%2Fparquet"):
                siblings = [{"rfilename": name} for name in [".gitattributes", *files]]
                content = json.dumps({"id": repo, "sha": COMMIT, "siblings": siblings}).encode()
            else:
                name = self.path.partition(f"/datasets/{repo}/resolve/refs%2Fconvert%2Fparquet/")[2]
                content = files.get(name, b"")
            self.send_response(200 if content else 404)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if body:
                self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


def test_columns_are_joined_and_tasks_numbered():
    with hub("tatsu-lab/alpaca", {"default/train/0000.parquet": ALPACA.to_parquet()}) as (address, asked):
        tasks = load_hub_tasks("alpaca", endpoint=address)
    assert [(task.id, task.text, task.origin) for task in tasks] == [
        ("alpaca_0", "Name three rivers.", "alpaca"),
        ("alpaca_1", "Sort these.\n\n3, 1, 2", "alpaca"),
    ]
    assert asked[0].startswith("/api/datasets/tatsu-lab/alpaca/revision/refs%2Fconvert%2Fparquet")
    assert any(path.endswith("resolve/refs%2Fconvert%2Fparquet/default/train/0000.parquet") for path in asked[1:])


def test_of_a_conversation_the_first_request_counts_and_rows_are_chosen_by_value():
    with hub("allenai/WildChat-1M", {"default/train/0000.parquet": WILDCHAT.to_parquet()}) as (address, _):
        tasks = load_hub_tasks("wildchat", endpoint=address)
    assert [(task.id, task.text) for task in tasks] == [("h1", "Question 0?")]


def test_no_more_files_are_fetched_than_are_needed():
    files = {f"default/train/000{n}.parquet": ALPACA.to_parquet() for n in range(3)}
    with hub("tatsu-lab/alpaca", files) as (address, asked):
        assert len(load_hub_tasks("alpaca", limit=3, endpoint=address)) == 3
    fetched = {path.rpartition("/")[2] for path in asked if path.endswith(".parquet")}
    assert fetched == {"0000.parquet", "0001.parquet"}


def test_any_data_set_is_named_with_a_column_map():
    source = hub_source("hub:me/mine?text=prompt,context&id=uid&topic=kind&split=test&lang=en")
    assert (source.repo, source.text, source.id, source.topic, source.split) == (
        "me/mine",
        ("prompt", "context"),
        "uid",
        "kind",
        "test",
    )
    assert source.origin == "mine" and source.where == {"lang": "en"}
    with pytest.raises(TaskError, match=r"no data set 'alpacca'.*'alpaca'.*hub:owner/name"):
        hub_source("alpacca")


def test_wrong_columns_splits_and_rows_are_named():
    with hub("me/mine", {"default/train/0000.parquet": ALPACA.assign(id=["x", "x"]).to_parquet()}) as (address, _):
        with pytest.raises(TaskError, match=r"no columns \['prompt'\]; it has \['instruction', 'input', 'output', 'id'\]"):
            load_hub_tasks("hub:me/mine?text=prompt", endpoint=address)
        with pytest.raises(TaskError, match=r"no default/test; expected .* one of \['default/train'\]"):
            load_hub_tasks("hub:me/mine?text=input&split=test", endpoint=address)
        with pytest.raises(TaskError, match="row 1: id 'x' was used on row 0"):
            load_hub_tasks("hub:me/mine?text=instruction&id=id", endpoint=address)


def test_without_a_network_the_error_says_so_and_names_the_way_out():
    with pytest.raises(TaskError, match=r"Cannot read the data set tatsu-lab/alpaca .*needs a network.*builtin"):
        load_hub_tasks("alpaca", endpoint="http://127.0.0.1:9")


def test_every_preset_names_a_repository_and_an_origin():
    assert set(PRESETS) == {"math", "alpaca", "wildchat", "bailbench"}
    assert all(source.origin == name and source.repo.count("/") == 1 for name, source in PRESETS.items())
