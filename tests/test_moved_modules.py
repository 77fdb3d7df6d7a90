"""Modules of 0.1.0 are found under their old names for one release, with a warning, and are those of today."""

from __future__ import annotations

import importlib
import sys

import pytest

pytestmark = pytest.mark.filterwarnings("ignore:skipstone:FutureWarning")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("skipstone.pebble.scenes", "skipstone_pebble.scenes"),
        ("skipstone.pebble.sprites", "skipstone_pebble.recipe.sprites"),
        ("skipstone.backbones.mixture", "skipstone.testing.backbones.mixture"),
        ("skipstone.bench.prompt_files", "skipstone.evaluation.prompt_files"),
        ("skipstone.bench.oracle", "skipstone_bench.oracle"),
        ("skipstone.peers.deepcache", "skipstone_bench.peers.deepcache"),
    ],
)
def test_an_old_name_is_the_module_of_today(old: str, new: str) -> None:
    for name in [n for n in sys.modules if n == old]:
        del sys.modules[name]
    with pytest.warns(FutureWarning, match=new):
        found = importlib.import_module(old)
    assert found is importlib.import_module(new)
    assert found.__name__ == new
    assert found.__spec__ is not None
    assert found.__spec__.name == new


def test_names_of_old_packages_are_found() -> None:
    import skipstone.pebble
    from skipstone.backbones import Mixture
    from skipstone.bench import prompt_files
    from skipstone.peers import Peer

    import skipstone_pebble
    from skipstone.evaluation import prompt_files as same
    from skipstone.evaluation.peers import Peer as SamePeer
    from skipstone.testing.backbones import Mixture as SameMixture

    assert skipstone.pebble.path is skipstone_pebble.path
    assert (Mixture, prompt_files, Peer) == (SameMixture, same, SamePeer)


@pytest.mark.parametrize("name", ["skipstone.nonsense", "skipstone.pebble.nonsense", "skipstone.calibrate.target"])
def test_what_never_was_is_not_found(name: str) -> None:
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module(name)
