"""Experiments that only ask run on a model behind a server; those that need its weights say so. The key is written nowhere."""

import zlib

import pytest

from experiments import position_bias, probe_sweep
from experiments.cli import main, parse_settings
from experiments.position_bias import PositionBiasSettings
from experiments.probe_sweep import ProbeSweepSettings
from experiments.settings import ConfigError, Settings
from tests.elicit.chat_server import KEY, KEY_NAME, ChatServer

TEMPLATES = ("would_rather", "pick_one,labels=12")


def table(last, said):
    """A choice that leans to what is shown first and to what a checksum says, in either pair of labels."""
    lean = 0.1 * (zlib.crc32(last.encode()) % 100) / 100
    space = " " if said else ""
    chances = zip("AB12.", (0.3 + lean, 0.2, 0.28 - lean, 0.2, 1e-5), strict=True)
    return {f"{space}{label}": chance for label, chance in chances}


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv(KEY_NAME, KEY)
    with ChatServer(table, key=KEY) as started:
        yield started


def test_position_bias_runs_on_a_server_and_repeats_for_nothing(server, tmp_path, monkeypatch):
    monkeypatch.setattr("interp.LocalModel.load", lambda *_, **__: pytest.fail("a model was loaded"))
    flags = ["--respondent.base-url", server.url, "--respondent.model", "tabled", "--respondent.api-key-env", KEY_NAME]
    flags += ["--out", str(tmp_path / "p"), "--per-origin", "1", "--degree", "2", "--templates", *TEMPLATES]
    settings = parse_settings("position_bias", PositionBiasSettings, flags, "")
    result = position_bias.run(settings)
    assert "Being shown first is worth from" in result.screen and "tabled (as served on 127.0.0.1:" in result.screen
    report = (tmp_path / "p/report.html").read_text()
    assert "tabled (as served on 127.0.0.1:" in report and "[user]" in report
    summary, n_requests = (tmp_path / "p/summary.json").read_text(), len(server.requests)
    position_bias.run(settings)
    assert (tmp_path / "p/summary.json").read_text() == summary
    assert len(server.requests) == n_requests
    again = PositionBiasSettings.read(tmp_path / "p/config.yaml")
    assert again.respondent == settings.respondent
    written = [path for path in (tmp_path / "p").rglob("*") if path.is_file()]
    assert len(written) > 8 and not [path for path in written if KEY.encode() in path.read_bytes()]


def test_what_needs_the_weights_refuses_a_server(server, tmp_path, capsys):
    respondent = {"base_url": server.url, "model": "tabled"}
    with pytest.raises(
        ConfigError, match=r"probe_sweep needs the model's weights, .*can only be asked. Leave out --respondent"
    ):
        probe_sweep.run(ProbeSweepSettings.of({"out": tmp_path / "s", "per_origin": 2, "respondent": respondent}))
    with pytest.raises(ConfigError, match="An intervention needs the model's weights"):
        Settings.of({"respondent": respondent, "intervention": tmp_path / "v.safetensors"}).load_respondent()
    assert main(["position_bias", "--dry-run", "--respondent.base-url", server.url, "--respondent.model", "tabled"]) == 1
    assert "--dry-run plans for models on this machine" in capsys.readouterr().err
    assert not server.requests


def test_settings_that_do_not_name_a_server_rightly_are_errors():
    for values, message in (
        ({"base_url": "http://h/v1"}, "base_url and model belong together"),
        ({"base_url": "http://h/v1", "model": "m", "budget_usd": 1}, "budget_usd needs to know what tokens cost"),
        ({"base_url": "http://u:hunter2@h/v1", "model": "m"}, "put the key into an environment variable"),
        ({"bas_url": "x"}, "did you mean 'respondent.base_url'"),
    ):
        with pytest.raises(ConfigError, match=message) as refused:
            Settings.of({"respondent": values})
        assert "hunter2" not in str(refused.value)
