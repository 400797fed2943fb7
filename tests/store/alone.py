"""What a process that imports the store alone can show: kills, races, limits on memory and disk, and lost rights.

`python -m tests.store.alone SCENARIO FOLDER` prints one JSON value about what happened; the tests read the files.
"""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from store import ActivationStore, ActivationWriter, Slots
from store.layout import DamagedStore, UnwritableStore, create_store
from tests.store.sample import Sample, datasets, header, sample

N_KILLS, N_PER_WRITE = 200, 2
N_RACES, N_RACERS = 6, 8
N_DAMAGED = 400


def alone(scenario: str, folder: Path, *arguments: str, within: Sequence[str] = ()) -> Any:
    """Run a scenario in a process of its own and return what it says; `within` is a command that starts it."""
    command = [*within, sys.executable, "-m", "tests.store.alone", scenario, str(folder), *arguments]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=Path(__file__).parents[2])
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def killed_sample() -> Sample:
    """Rows that take about as long to copy as the rest of a write does, so that kills strike everywhere."""
    return sample(n=18, d_model=2048, layers=(3,), positions=("prompt_last", "all"))


def killed(folder: Path) -> list[dict]:
    """Writers that are killed at random instants; every other one has to create its file first.

    What a killed process wrote is in the kernel's hands whether it was flushed or not, so one in four flushes, and waits for
    the disk; of the others more are killed in the middle of a copy.
    """
    chance, expected, flush = random.Random(0), killed_sample(), os.fsync
    os.fsync = lambda _: None

    def write(pipe: int, path: Path, number: int) -> None:
        if number % 4 == 0:
            os.fsync = flush
        with ActivationWriter.resume(path, expected.header, expected.slots) as writer:
            for part in np.random.default_rng(number).permutation(writer.open_slots()).reshape(-1, N_PER_WRITE):
                expected.write(writer, part)
                os.write(pipe, bytes(part.tolist()))

    def begin(number: int) -> tuple[Path, int, Any]:
        path = folder / f"{number}.h5"
        if number % 2:
            create_store(path, expected.header, expected.slots)
        child, reports = _fork(partial(write, path=path, number=number))
        return path, child, open(reports, "rb", buffering=0)

    def unharmed(number: int) -> tuple[float, float]:
        """How long it takes to the first report, and from one to the next."""
        begun = time.monotonic()
        _, child, reports = begin(number)
        with reports:
            moments = [time.monotonic() for _ in iter(lambda: reports.read(N_PER_WRITE), b"")]
        assert os.waitpid(child, 0)[1] == 0 and len(moments) * N_PER_WRITE == len(expected)
        return moments[0] - begun, (moments[-1] - moments[0]) / (len(moments) - 1)

    def one(number: int) -> dict:
        path, child, reports = begin(number)
        written, (start, pace) = chance.choice([0, 0, 0, *range(1, 9)]), times[number % 4]
        with reports:
            reported = b"".join(reports.read(N_PER_WRITE) for _ in range(written))
            time.sleep(chance.uniform(0, pace if written else start))
            os.kill(child, signal.SIGKILL)
            reported += reports.readall()
        os.waitpid(child, 0)
        return {"path": str(path), "reported": list(reported)}

    times = [unharmed(N_KILLS + kind) for kind in range(4)]
    return [one(number) for number in range(N_KILLS)]


def raced(folder: Path) -> list[dict]:
    """Processes that all begin the same new store at once; whoever has it keeps it until all have tried."""
    expected = sample()

    def one(number: int) -> dict:
        path = folder / f"{number}.h5"
        (start, started), (finish, finished) = os.pipe(), os.pipe()

        def race(pipe: int, task: int) -> None:
            os.close(started)
            os.close(finished)
            os.read(start, 1)
            try:
                with ActivationWriter.resume(path, expected.header, expected.slots) as writer:
                    expected.write(writer, [task])
                    os.write(pipe, b"wrote")
                    os.read(finish, 1)
            except UnwritableStore as error:
                os.write(pipe, str(error).encode())

        racers = [_fork(partial(race, task=task)) for task in range(N_RACERS)]
        os.close(started)
        outcomes = [os.read(reports, 1000).decode() for _, reports in racers]
        os.close(finished)
        for child, _ in racers:
            os.waitpid(child, 0)
        for pipe in (start, finish, *(reports for _, reports in racers)):
            os.close(pipe)
        return {"path": str(path), "outcomes": outcomes}

    return [one(number) for number in range(N_RACES)]


def damaged(folder: Path) -> int:
    """Open and read stores whose structure, all that is not rows, is damaged at random; how many did no harm."""
    original, path = folder / sys.argv[3], folder / "damaged.h5"
    raw, rows = original.read_bytes(), [range(offset, offset + size) for offset, size in datasets(original).values()]
    structure = [place for place, byte in enumerate(raw) if byte and not any(place in each for each in rows)]

    def read(pipe: int, seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(N_DAMAGED // 10):
            changed = bytearray(raw)
            for place in chance.sample(structure, chance.choice([1, 1, 2, 4])):
                changed[place] = chance.choice([changed[place] ^ 1 << chance.randrange(8), chance.randrange(256), 0, 255])
            path.write_bytes(changed)
            signal.alarm(20)
            with suppress(DamagedStore):
                opened = ActivationStore(path)
                opened.verify()
                opened.norms()
            os.write(pipe, b".")

    harmless = 0
    for seed in range(10):
        child, reports = _fork(partial(read, seed=seed))
        with open(reports, "rb") as reader:
            harmless += len(reader.read())
        os.waitpid(child, 0)
    return harmless


def without_rights(folder: Path) -> dict:
    """Read and write a store whose permissions forbid it, as nobody in particular."""
    os.chdir(folder)
    if os.geteuid() == 0:
        os.setuid(65534)
    found = {"rows": ActivationStore("a.h5").load(3, "task_mean").tolist()}
    for name, attempt in {
        "open": lambda: ActivationWriter("a.h5"),
        "resume": lambda: ActivationWriter.resume("a.h5", sample().header, sample().slots),
        "create": lambda: ActivationWriter.resume("b.h5", sample().header, sample().slots),
    }.items():
        try:
            attempt()
        except Exception as error:
            found[name] = [type(error).__name__, str(error)]
    return found


def disk_too_small(folder: Path) -> dict:
    """Create a store that is larger than a file may be, then one that is not, and fill the disk before it is written."""
    large, small = sample(d_model=4096), sample()
    if "--limit" in sys.argv:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    found = {}
    try:
        create_store(folder / "large.h5", large.header, large.slots)
    except OSError as error:
        found["error"] = str(error)
    found["left behind"] = os.listdir(folder)
    create_store(folder / "small.h5", small.header, small.slots)
    if "--limit" not in sys.argv:
        found["filled to the last byte"] = _fill_disk(folder)
    filled = small.fill(folder / "small.h5")
    found["written"] = int(filled.done.sum()) if filled.verify() == [] else "damaged"
    return found


def _fill_disk(folder: Path) -> bool:
    with open(folder / "ballast", "wb", buffering=0) as ballast:
        try:
            while ballast.write(bytes(4096)):
                pass
        except OSError:
            return True
    return False


def larger_than_memory(folder: Path) -> dict:
    """Read from a store of 2 GB in a process that may take 256 MB more; what was not written takes no place on disk."""
    os.posix_fallocate = lambda *_: None
    n, width, key = 16_384, 32_768, (3, "task_mean")
    head = header("float32", d_model=width, layers=key[:1], positions=key[1:])
    ids = [f"t{number}" for number in range(n)]
    path, chosen = folder / "large.h5", np.array([5, n - 5])
    with ActivationWriter.resume(path, head, Slots(ids, ids)) as writer:
        rows = np.stack([np.full(width, 7, np.float32), np.full(width, 8, np.float32)])
        writer.write(chosen, {key: rows}, np.ones(2, dtype=int), {key[1]: np.zeros(2, dtype=int)})
    taken = int(Path("/proc/self/status").read_text().split("VmData:")[1].split()[0]) * 1024
    resource.setrlimit(resource.RLIMIT_DATA, (taken + (256 << 20),) * 2)
    large = ActivationStore(path)
    found = {
        "bytes": path.stat().st_size,
        "one row": float(large.rows(*key)[n - 5].mean()),
        "scattered rows": large.rows(*key)[[n - 5, 100, 5]].mean(axis=1).tolist(),
        "a slice": large.rows(*key)[n - 6 : n - 4].mean(axis=1).tolist(),
        "two tasks": [float(rows.mean()) for _, rows in large.batches(*key, [ids[slot] for slot in chosen], size=1)],
    }
    try:
        np.asarray(large.rows(*key))
    except MemoryError:
        found["all rows"] = "do not fit"
    return found


def _fork(work: Callable[[int], None]) -> tuple[int, int]:
    """Run work in a forked process with a pipe to report through; returns its id and the end to read."""
    reader, writer = os.pipe()
    child = os.fork()
    if child:
        os.close(writer)
        return child, reader
    try:
        os.close(reader)
        work(writer)
        os._exit(0)
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(1)


if __name__ == "__main__":
    assert {"torch", "transformers", "interp"}.isdisjoint(sys.modules)
    scenarios = [killed, raced, damaged, without_rights, disk_too_small, larger_than_memory]
    chosen = next(scenario for scenario in scenarios if scenario.__name__ == sys.argv[1])
    print(json.dumps(chosen(Path(sys.argv[2]))))
