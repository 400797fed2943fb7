"""The embedded model under every experiment, with its forward passes counted."""

import pytest

from interp import LocalModel
from interp.backends.hf import HFBackend


@pytest.fixture
def counted(monkeypatch, embedded):
    """Counts forward passes, and hands out the loaded model."""
    passes = []
    original = HFBackend.run

    def run(self, *args, **kwargs):
        passes.append(1)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(HFBackend, "run", run)
    monkeypatch.setattr(LocalModel, "load", classmethod(lambda *_, **__: embedded))
    return passes
