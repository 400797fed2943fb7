"""Weights & Biases as a sink: results that are on disk already are copied to W&B, one run per configuration.

W&B can fail in many ways, none of which is a reason to lose a result: whatever goes wrong is one warning, never an error.
"""

import contextlib
import json
import logging
import math
import os
import shutil
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from experiments.wandb_content import Content, plain
from experiments.wandb_log import is_complete
from store.provenance import digest

if TYPE_CHECKING:
    import wandb

PROJECT = "penchant"
"""Name of the W&B project, unless another is given."""

_MODES = {
    "online": "online",
    "run": "online",
    "shared": "online",
    "offline": "offline",
    "dryrun": "offline",
    "disabled": "disabled",
}
"""What W&B's own names of modes mean here."""

_FAILURES_IN_A_ROW = 2
"""After so many a sink stops trying."""


class WandbWarning(UserWarning):
    """Something could not be given to W&B; says what, and how to send it later. Results on disk are not concerned."""


class WandbSink:
    """Copies results to W&B: one run per configuration, all of them in one group.

    Each configuration has one run for good: its id is a digest of group and configuration. Runs that are complete are listed in
    `DIRECTORY/wandb/logged.json` and skipped; one that was killed halfway is written again, under the same id.

    Started by `wandb agent`, the one configuration of the process goes to the run that the agent has made for it.

    Parameters
    ----------
    directory
        Run directory. W&B's files go to `wandb` in it, and can be sent from there at any time: `wandb sync DIRECTORY/wandb`.
    project
        W&B project. Under an agent it is the sweep's.
    group
        What the runs have in common, such as the name of the experiment and a digest of what is shared.
    mode
        `auto` does what WANDB_MODE or `wandb online / offline / disabled` say, and is offline unless the user is logged in
        (`wandb login`, WANDB_API_KEY or .netrc; neither asked for nor verified). `online` also is offline without a login.
    patience
        Seconds to wait for W&B to begin a run, and again to send it. When they have passed, this and all later runs of the
        sink stay offline.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        project: str = PROJECT,
        group: str,
        mode: Literal["auto", "offline", "online", "disabled"] = "auto",
        patience: float = 8.0,
    ) -> None:
        if mode not in ("auto", "offline", "online", "disabled"):
            raise ValueError(f"mode is {mode!r}; expected auto, offline, online or disabled.")
        self.directory = Path(directory).resolve()
        self.project = project
        self.group = group
        self.mode = mode
        self.patience = patience
        self._settled: str | None = None
        self._failures = 0

    @property
    def folder(self) -> Path:
        """Where W&B's files are."""
        return self.directory / "wandb"

    def log(
        self,
        config: Mapping[str, Any],
        metrics: Mapping[str, float],
        *,
        name: str,
        curves: Mapping[str, pd.DataFrame] | None = None,
        tables: Mapping[str, pd.DataFrame] | None = None,
        artefacts: Sequence[Path] = (),
    ) -> None:
        """Log one configuration, unless it was logged before. Never raises: a failure is a `WandbWarning`.

        Parameters
        ----------
        config
            What was run. Two configurations that are equal are the same run, whatever their results.
        metrics
            What came out.
        name
            Name of the run, for people.
        curves
            Series: the first column is the horizontal axis (say alpha), the others are logged against it as `CURVE/COLUMN`.
        tables
            Logged as W&B tables.
        artefacts
            Files and folders, together one W&B artefact of type `probe`.
        """
        if self.mode == "disabled" or self._failures >= _FAILURES_IN_A_ROW:
            return
        try:
            series = {each: curve.astype(float) for each, curve in (curves or {}).items()}
            self._log(Content(plain(config), metrics, name, series, tables or {}, artefacts))
            self._failures = 0
        except Exception as error:  # W&B raises anything, and nothing of it may reach the results
            self._failures += 1
            later = "W&B is left alone until then" if self._failures >= _FAILURES_IN_A_ROW else "it is not logged until then"
            self._warn(f"failed on {name!r}: {_one_line(error)}. The same command tries again; {later}")

    def note(self) -> str:
        """One line on what is on disk and not yet sent; empty if nothing is."""
        waiting = [
            path.parent
            for path in sorted(self.folder.glob("offline-run-*/run-*.wandb"))
            if not path.with_suffix(".wandb.synced").exists()
        ]
        return f"W&B: {len(waiting)} run(s) on disk, not yet sent; `wandb sync {self.folder}` sends them." if waiting else ""

    def _log(self, content: Content) -> None:
        configuration = digest(self.group, content.config)
        run_id = _agent_run() or configuration[:16]
        entry = self._logged().get(run_id)
        if entry and entry["configuration"] == configuration:
            return
        if entry:
            raise ValueError(
                "`wandb agent` has one run for this process, which has several configurations: sweep over every setting that "
                "has more than one value"
            )
        with self._surroundings(run_id):
            if self._settled is None:
                self._settled = self._settle()
            if self._settled == "disabled":
                return
            folder = self._write(run_id, content)
        self._remember(run_id, {"name": content.name, "folder": folder.name, "configuration": configuration})

    @contextlib.contextmanager
    def _surroundings(self, run_id: str) -> Iterator[None]:
        """What W&B has no setting for: environment variables that it reads, unless the user has set them, and its own log."""
        variables = {
            "WANDB_SILENT": "true",
            "WANDB_ERROR_REPORTING": "false",
            "WANDB__SERVICE_WAIT": str(self.patience),
            "WANDB_DATA_DIR": str(self._staging(run_id)),
            "WANDB_CACHE_DIR": str(self.folder / "cache"),
        }
        added = [variable for variable in variables if variable not in os.environ]
        os.environ.update({variable: variables[variable] for variable in added})
        loud, logging.raiseExceptions = logging.raiseExceptions, False  # on a full disk W&B's own log would fill the screen
        try:
            yield
        finally:
            logging.raiseExceptions = loud
            for variable in added:
                os.environ.pop(variable, None)

    def _settle(self) -> str:
        """The mode that is used from now on."""
        import wandb

        asked = self.mode
        if asked == "auto":
            asked = os.environ.get("WANDB_MODE") or wandb.setup().settings.mode
        if asked not in _MODES:
            raise ValueError(f"WANDB_MODE is {asked!r}; expected online, offline or disabled")
        if _MODES[asked] != "online":
            return _MODES[asked]
        try:
            logged_in = _logged_in()
        except wandb.Error as error:
            self._warn(f"stays offline: {_one_line(error)}")
            return "offline"
        if not logged_in and "online" in (self.mode, os.environ.get("WANDB_MODE")):
            self._warn("stays offline, though online was asked for: nobody is logged in (`wandb login`)")
        return "online" if logged_in else "offline"

    def _write(self, run_id: str, content: Content) -> Path:
        """Write one run, complete; returns its folder."""
        while True:
            self._remove_half(run_id)
            scalars, bundle = content.scalars(), content.bundle(f"probe-{run_id}")
            try:
                run = self._begin(run_id, content)
                try:
                    content.log_curves(run)
                    run.log(scalars)
                    if bundle:
                        sent = run.log_artifact(bundle)
                        if self._settled == "online":
                            sent.wait(math.ceil(self.patience))  # finish() says nothing of an artefact that was not taken
                    self._finish(run)
                except BaseException:
                    _abandon(run)
                    raise
                return Path(run.dir).parent
            except Exception as error:
                if self._settled == "offline":
                    self._remove_half(run_id)
                    raise
                self._go_offline(error)

    def _begin(self, run_id: str, content: Content) -> "wandb.Run":
        import wandb

        try:
            return wandb.init(
                id=run_id,
                project=self.project,
                group=self.group,
                name=content.name,
                config=dict(content.config),
                dir=str(self.directory),
                mode="online" if self._settled == "online" else "offline",
                reinit="create_new",  # a run of the caller's own stays the current one
                settings=self._settings(),
            )
        except Exception:
            _tear_down()
            raise

    def _settings(self) -> "wandb.Settings":
        """Quiet, patient for so long, and silent on what was not asked for: console, code, git, machine."""
        import wandb

        return wandb.Settings(
            silent=True,
            console="off",
            symlink=False,
            use_dot_wandb=False,
            disable_code=True,
            disable_git=True,
            disable_job_creation=True,
            save_code=False,
            label_disable=True,
            host="",
            program="penchant",
            x_disable_machine_info=True,
            x_disable_meta=True,
            x_disable_stats=True,
            x_save_requirements=False,
            init_timeout=self.patience,
            finish_timeout=self.patience,
            finish_timeout_raises=True,
        )

    def _finish(self, run: "wandb.Run") -> None:
        """Complete a run. What cannot be sent in time is complete on disk all the same."""
        folder = Path(run.dir).parent
        try:
            run.finish()
        except TimeoutError as error:
            self._go_offline(error, f"--include-online {folder}")
        # W&B's service writes the end of the file after finish() has returned, or on a full disk does not, without a word.
        deadline = time.monotonic() + self.patience
        while not is_complete(folder / f"run-{run.id}.wandb"):
            if time.monotonic() > deadline:
                raise OSError(f"{folder} is not complete after {self.patience} s; is the disk full?")
            time.sleep(0.002)

    def _go_offline(self, error: Exception, paths: str = "") -> None:
        self._settled = "offline"
        self._warn(f"stays offline from now on: {_one_line(error)}", paths)

    def _remove_half(self, run_id: str) -> None:
        """Remove what an earlier attempt at a run left behind."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for pattern in (f"*run-*-{run_id}", f"*run-*-{run_id}-*"):
            for folder in self.folder.glob(pattern):
                shutil.rmtree(folder)
        if self._staging(run_id).exists():
            shutil.rmtree(self._staging(run_id))

    def _staging(self, run_id: str) -> Path:
        """Where W&B keeps copies of tables and artefacts until they are sent."""
        return self.folder / "staging" / run_id

    def _logged(self) -> dict[str, Any]:
        path = self.folder / "logged.json"
        try:
            return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is not JSON ({error}); without it, every configuration is logged again") from error

    def _remember(self, run_id: str, entry: dict[str, str]) -> None:
        path = self.folder / "logged.json"
        scratch = path.with_suffix(f".{os.getpid()}.partial")  # several agents may share a directory
        scratch.write_text(json.dumps(self._logged() | {run_id: entry}, indent=2), encoding="utf-8")
        scratch.replace(path)

    def _warn(self, what: str, paths: str = "") -> None:
        line = f"W&B {what}. Results are in {self.directory}; `wandb sync {paths or self.folder}` sends what W&B has on disk."
        warnings.warn(line, WandbWarning, stacklevel=2)


def _logged_in() -> bool:
    """Whether W&B has credentials; unlike `wandb.login`, without asking the user or the server, and without a word."""
    import wandb
    from wandb.sdk.lib import wbauth

    host = wandb.setup().settings.base_url
    return wbauth.authenticate_session(host=host, source=PROJECT, prompt=False, update_session=False) is not None


def _agent_run() -> str | None:
    """Id of the run that `wandb agent` has made for this process, if it has."""
    return os.environ.get("WANDB_RUN_ID") if os.environ.get("WANDB_SWEEP_ID") else None


def _abandon(run: "wandb.Run") -> None:
    """End a run that could not be written; why is the error that is on its way to the caller."""
    try:
        run.finish(exit_code=1)
    except Exception:
        _tear_down()


def _tear_down() -> None:
    """Let go of a service of W&B's that may no longer answer, so that the next run starts another."""
    import wandb

    if wandb.run is None:  # the caller's own run would be ended too
        with contextlib.suppress(Exception, SystemExit):  # that it does not answer is why this was called
            wandb.teardown()


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(": .")
