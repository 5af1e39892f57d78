"""What every test needs: no network, one thread, quiet libraries."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import hypothesis
import pytest

from fedfm.engines.running import quiet_libraries

quiet_libraries()  # before transformers, flwr or ray are imported

import torch  # noqa: E402

torch.set_num_threads(1)

# Properties are checked on values. A deadline of 200 ms for each measures who else works on the machine.
hypothesis.settings.register_profile("fedfm", deadline=None)
hypothesis.settings.load_profile("fedfm")

TINY_RUN = {
    "rounds": 1,
    "local": {"batch-size": 12, "epochs": 2},
    "domains": {
        "medical": {"task": "image-classification", "max-examples": 24},
        "finance": {"task": "text-classification", "max-examples": 24},
        "ner": {"task": "token-classification", "max-examples": 24},
    },
}


@pytest.fixture(scope="session")
def load_script() -> Callable[[str], ModuleType]:
    """`load_script("lock")`: scripts/lock.py as a module of its own."""

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[1] / "scripts" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory) -> Path:
    """The folder of a finished run: three generated domains, six sites, one round, some seconds. Not to be changed."""
    import fedfm

    return fedfm.run(TINY_RUN, f"runs.folder={tmp_path_factory.mktemp('runs')}").folder


@pytest.fixture(scope="module")
def small_data():
    """Generated sites with a quarter of their examples to score: for tests that score hundreds of times."""
    from fedfm.domains import generated

    def forget() -> None:
        generated._generate.cache_clear()
        generated._cut.cache_clear()

    whole = dict(generated.EXAMPLES_PER_SITE)
    generated.EXAMPLES_PER_SITE.update(validation=16, test=20)
    forget()
    yield
    generated.EXAMPLES_PER_SITE.update(whole)
    forget()
