"""python -m experiments.bench NAME: run a benchmark; the last line it prints is one JSON object."""

import importlib
import sys

BENCHMARKS = {
    "ask": "Exact scoring of choices and ratings, against plain forward passes and lm-evaluation-harness.",
    "capture": "Capturing residual streams, against hand-written loops and other libraries; how much of a GPU is used.",
    "costs": "What the usual work takes in questions, tokens, GPU-hours, memory, disk and money; nothing is asked.",
    "designs": "Whether intervals hold after active learning, by design; simulated judges.",
    "fit": "Fitting utilities, against choix and a plain PyTorch fit of a sigma per task; and how cost grows.",
    "probe": "Ridge probes of many targets and permutations, against scikit-learn and himalaya.",
    "store": "Reading and writing activations, against memory copies and plain h5py.",
}


def main(arguments: list[str]) -> int:
    """Run a benchmark by name."""
    if not arguments or arguments[0] not in BENCHMARKS:
        wrong = f"There is no benchmark {arguments[0]!r}. " if arguments and not arguments[0].startswith("-") else ""
        names = "\n".join(f"  {name}  {line}" for name, line in BENCHMARKS.items())
        print(f"{wrong}python -m experiments.bench NAME, with one of:\n{names}")
        return 1 if wrong else 0
    importlib.import_module(f"experiments.bench.{arguments[0]}").main(arguments[1:])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
