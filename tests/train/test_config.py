"""Configurations: every key is known, read and written back; an error names the file, the key and what to type."""

from __future__ import annotations

import dataclasses
import sys
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from logs import log

from skipstone.errors import SpecError
from skipstone.yaml_settings import CHOICES_KEY, parse_settings, to_plain, to_yaml
from skipstone_train.agents import config as C
from skipstone_train.agents.held_out import HeldOutEpisodes
from skipstone_train.agents.learners import LEARNERS
from skipstone_train.agents.training import Training

CONFIGS = sorted((Path(__file__).parents[2] / "examples" / "configs").glob("agent_*.yaml"))


@dataclass(frozen=True)
class Inner:
    rate: float = 0.1
    sizes: tuple[int, ...] = (1, 2)
    pair: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        if self.rate <= 0:
            raise SpecError(f"expected rate > 0, got {self.rate:g}; try rate=0.1.")


@dataclass(frozen=True)
class Other:
    loud: bool = False


@dataclass(frozen=True)
class Outer:
    inner: Inner = field(default_factory=Inner)
    kind: Any = field(default_factory=Inner, metadata={CHOICES_KEY: lambda: {"one": Inner, "two": Other}})
    maybe: Inner | None = None
    word: Literal["a", "b"] = "a"
    count: int = 3
    name_: str = "x"


# -- Reading ----------------------------------------------------------------------------------------


def test_nothing_said_is_all_defaults() -> None:
    assert parse_settings(Outer, "", "f") == Outer()
    assert parse_settings(Outer, "# a comment\n", "f") == Outer()


outers = st.builds(
    Outer,
    inner=st.builds(
        Inner,
        st.floats(1e-6, 1e6),
        st.lists(st.integers(-9, 9)).map(tuple),
        st.tuples(st.floats(-9, 9), st.floats(-9, 9)),
    ),
    kind=st.one_of(st.builds(Inner, st.floats(1e-6, 1e6)), st.builds(Other, st.booleans())),
    maybe=st.none() | st.builds(Inner, st.floats(1e-6, 1e6)),
    word=st.sampled_from(["a", "b"]),
    count=st.integers(-99, 99),
    name_=st.text(st.characters(exclude_categories=("Cs", "Cc"))),
)


@given(outers)
def test_what_is_written_is_read_back(settings: Outer) -> None:
    assert parse_settings(Outer, to_yaml(settings), "f") == settings


def test_changes_on_the_command_line() -> None:
    text = "kind: {name: one, rate: 0.5}\ninner:\n  rate: 0.2\n"
    assert parse_settings(Outer, text, "f", ["inner.rate=3e-4", "inner.sizes=[7]", "word=b"]) == Outer(
        Inner(3e-4, (7,)), Inner(0.5), word="b"
    )
    assert parse_settings(Outer, text, "f", ["kind.rate=2"]).kind == Inner(2.0)
    assert (
        parse_settings(Outer, text, "f", ["kind.name=two"]).kind == Other()
    )  # what was said of the other kind means nothing
    assert parse_settings(Outer, text, "f", ["kind=two", "kind.loud=true"]).kind == Other(True)
    assert parse_settings(Outer, text, "f", ["kind.name=one"]).kind == Inner(0.5)
    assert parse_settings(Outer, "maybe: {rate: 2}", "f", ["maybe=null"]).maybe is None
    assert parse_settings(Outer, "", "f", ["inner.sizes=3", "inner.rate=.inf"]).inner == Inner(float("inf"), (3,))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "count: 1\ninner:\n  rte: 2\n",
            r"^f: inner has no key 'rte'. Did you mean 'rate'\? It takes: rate, sizes, pair\.$",
        ),
        ("cuont: 1\n", r"^f: The configuration has no key 'cuont'. Did you mean 'count'\?"),
        ("count: 1.5\n", r"^f, count: expected a valid integer, got 1.5\.$"),
        ("count: true\n", r"^f, count: expected a valid integer, got True"),
        ("\ninner:\n  rate: fast\n", r"^f, inner.rate: expected a valid number, got 'fast'"),
        ("inner:\n  rate: true\n", r"^f, inner.rate: expected a valid number, got True"),
        ("inner:\n  rate: .nan\n", r"^f: expected YAML.*NaN"),
        ("inner:\n  rate: -1\n", r"^f, inner: expected rate > 0, got -1; try rate=0.1"),
        ("inner: {sizes: [1, b]}\n", r"^f, inner.sizes.1: expected a valid integer, got 'b'"),
        ("inner: {sizes: {a: 1}}\n", r"^f, inner.sizes: expected a valid array, got {'a': 1}"),
        ("inner: {pair: [1]}\n", r"^f, inner.pair.1: .*required, got \[1\]"),
        ("inner: {pair: [1, 2, 3]}\n", r"^f, inner.pair: .*at most 2 items"),
        ("word: c\n", r"^f, word: expected 'a' or 'b', got 'c'"),
        ("name_: [a]\n", r"^f, name_: expected a valid string, got \['a'\]"),
        ("inner: 3\n", r"^f, inner: expected an object, got 3"),
        ("- 1\n", r"^f: expected an object, got \[1\]"),
        ("count: 1\ncount: 2\n", r"^f, line 2: .*'count' is there twice"),
        ("kind: three\n", r"^f: no kind is called 'three'. .*Known: one, two"),
        ("kind:\n  name: two\n  rate: 1\n", r"^f: kind has no key 'rate'. It takes: loud"),
        ("kind: {rate: x}\n", r"^f, kind.rate: expected a valid number, got 'x'"),
        ("maybe: {loud: 1}\n", r"maybe has no key 'loud'"),
        ("a: b: c\n", r"^f, line 1: expected YAML"),
        ("a: [1\n", r"^f, line 2: expected YAML"),
    ],
)
def test_what_is_wrong_is_said_with_its_key(text: str, said: str) -> None:
    with pytest.raises(SpecError, match=said):
        parse_settings(Outer, text, "f")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("inner.rte=2", r"^inner.rte=2: inner has no key 'rte'. Did you mean 'rate'\?"),
        ("count=many", r"^count=many, count: expected a valid integer, got 'many'"),
        ("count", r"Expected KEY=VALUE"),
        (".=3", r"Expected KEY=VALUE"),
        ("name_=[", r"^name_=\[, line 1: expected YAML"),
    ],
)
def test_a_wrong_change_is_said_as_it_was_typed(change: str, said: str) -> None:
    with pytest.raises(SpecError, match=said):
        parse_settings(Outer, "", "f", [change])


# -- The configuration of agents --------------------------------------------------------------------


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_shipped_configurations_are_read(path: Path) -> None:
    found = C.load_config(path)
    assert parse_settings(C.AgentConfig, to_yaml(found), "again") == found


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="cannot be read: No such file"):
        C.load_config(tmp_path / "nothing.yaml")
    with pytest.raises(SpecError, match="different seeds"):
        C.load_config(None, ["environment=toy", "seeds=[1, 1]"])


IDLE = ("__post_init__", "__repr__", "__eq__", "__hash__")  # checks of ranges, and what dataclasses bring


class Watched:
    """Notes which fields of a configuration are read, and by whom not: the writer of the file does not count."""

    def __init__(self) -> None:
        self.read: set[str] = set()

    def of(self, settings: Any, path: str = "") -> Any:
        """The same settings, which tell when a field is looked at by code outside dataclasses and `yaml_settings`."""
        read_, kind = self.read, type(settings)
        names = {f.name for f in dataclasses.fields(settings)}

        def look(own: Any, name: str) -> Any:
            who = sys._getframe(1).f_code
            if name in names and not who.co_filename.endswith(("dataclasses.py", "yaml_settings.py")):
                read_.update({f"{path}{name}"} if who.co_name not in IDLE else ())
            return object.__getattribute__(own, name)

        watched = type(kind.__name__, (kind,), {"__getattribute__": look, "__doc__": kind.__doc__})
        own: Any = object.__new__(watched)
        for f in dataclasses.fields(settings):
            value = getattr(settings, f.name)
            inner = self.of(value, f"{path}{f.name}.") if dataclasses.is_dataclass(value) else value
            object.__setattr__(own, f.name, inner)
        return own


def keys(settings: Any, path: str = "") -> set[str]:
    """Every key of a configuration, those of settings inside it too."""
    found = set()
    for f in dataclasses.fields(settings):
        value = getattr(settings, f.name)
        found |= keys(value, f"{path}{f.name}.") if dataclasses.is_dataclass(value) else {f"{path}{f.name}"}
    return found


def unread(settings: C.AgentConfig, out: Path, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Keys that a whole training does not look at; those that the command reads are not among them."""
    watch = Watched()
    watched = watch.of(settings)
    environment, learner = type(watched.environment), type(watched.learner)
    monkeypatch.setattr("skipstone_train.agents.training.environments", lambda: {"watched": environment})
    monkeypatch.setattr("skipstone_train.agents.training.learners", lambda: {"watched": learner})
    monkeypatch.setattr("skipstone_train.agents.training.to_plain", lambda config: to_plain(settings))
    monkeypatch.setattr("skipstone_train.agents.training.to_yaml", lambda config: to_yaml(settings))
    Training(watched, out, watched.minutes, watched.seeds[0], steps=300).run()
    return keys(settings) - watch.read - {"minutes", "seeds", "out"}


@pytest.mark.parametrize("learner", sorted(LEARNERS))
def test_every_key_of_a_training_is_read(learner: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that nobody reads would be a switch that switches nothing."""
    actions = "['continue', 'stop']" if learner == "stopping" else "['continue', 'skip 2', 'stop']"
    changes = [f"environment={{name: toy, actions: {actions}}}", f"learner={learner}", "curriculum={first: 0.5}"]
    changes += ["slots=8", "held_out=8", "minutes=1", "tracking=tensorboard"]
    settings = C.load_config(None, [*changes, *(f"learner.{one}" for one in SMALL[learner])])
    assert unread(settings, tmp_path, monkeypatch) == set()


def test_every_key_of_the_real_environment_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`eyes` and `fee` are read where a block looks at pictures, and only there."""
    path = log().save(tmp_path / "log.npz")
    changes = [f"environment.log={path}", "environment.axes=2", "learner=search", "slots=8", "tracking=none"]
    changes.append("environment.judged=false")  # there is no network behind this log
    settings = C.load_config(None, [*changes, *(f"learner.{one}" for one in SMALL["search"])])
    assert unread(settings, tmp_path, monkeypatch) == {"environment.eyes", "environment.fee"}


SMALL = {
    "ppo": ("rollout=8", "batch=32", "warm=16", "epochs=1"),
    "fitted_q": ("hidden=[8]", "members=1", "warm=16", "episodes=16", "sweeps=1", "memory=400", "passes=1"),
    "search": ("candidates=4", "episodes=8", "warm=16"),
    "stopping": ("hidden=[8]", "samples=16", "sweeps=1", "updates=5"),
}


def test_every_field_of_all_settings_has_a_kind_that_can_be_read() -> None:
    """So that no key of any environment or learner is refused for its type alone."""
    for kind in (*C.environments().values(), *C.learners().values()):
        typing.get_type_hints(kind)
        assert parse_settings(kind, to_yaml(kind()), "f") == kind()


def test_held_out_halves_do_not_overlap() -> None:
    held = HeldOutEpisodes(C.load_config(None, ["environment=toy"]).environment.build("validation", 32, 0))
    assert held.is_selection.sum() == 16
    lead = held.compare(held.random.utilities + 1.0, held.random.utilities)
    assert lead.is_significant
    assert (lead.mean, lead.error) == pytest.approx((1.0, 0.0))
