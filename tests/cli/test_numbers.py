"""Every option with a number has a range, and a value outside of it is a usage error before anything is loaded."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints

import pytest
import typer

from skipstone.cli import app
from skipstone.cli.options import MAX_PICTURES, number

WRONG = {int: ("nan", "inf", "1e30", "-9" * 40, "9" * 40, "9" * 5000), float: ("nan", "inf", "-inf", "1e30", "-1e400")}


class NumericOption(NamedTuple):
    """A command, all that it has to be given, and one of its options."""

    command: tuple[str, ...]
    required: tuple[str, ...]
    flag: str
    of: type
    info: Any
    count: int  # of numbers that follow the option


def commands(group: typer.Typer, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for command in group.registered_commands:
        assert command.callback is not None
        yield (*path, command.name or command.callback.__name__), command.callback
    for inner in group.registered_groups:
        assert inner.typer_instance is not None
        yield from commands(inner.typer_instance, (*path, str(inner.typer_instance.info.name)))


def numeric_options() -> Iterator[NumericOption]:
    for path, callback in commands(app):
        hints = get_type_hints(callback, include_extras=True)
        required: list[str] = []
        numbers = []
        for name, parameter in inspect.signature(callback).parameters.items():
            hint = hints[name]
            info = getattr(hint, "__metadata__", (None,))[0]
            said = getattr(info, "default", None)  # where Typer keeps the first name of an annotated option
            flag = said if isinstance(said, str) and said.startswith("-") else f"--{name.replace('_', '-')}"
            if info is not None and parameter.default is parameter.empty:
                required += [] if isinstance(info, typer.models.ArgumentInfo) else [flag]
                required.append("x")
            count = max([1, *(len(get_args(one)) for one in flatten(hint) if get_origin(one) is tuple)])
            numbers += [(flag, of, info, count) for of in (int, float) if of in flatten(hint)]
        yield from (NumericOption(path, tuple(required), *number) for number in numbers)


def flatten(hint: Any) -> set[Any]:
    """All types that an annotation names."""
    inner = [one for one in get_args(hint) if not isinstance(one, typer.models.ParameterInfo)]
    return {hint}.union(*map(flatten, inner))


OPTIONS = list(numeric_options())


@pytest.fixture(scope="module")
def root() -> Any:
    return typer.main.get_command(app)


def test_all_commands_are_walked() -> None:
    assert {option.command[0] for option in OPTIONS} >= {"generate", "compare", "calibrate", "audit", "tune", "bench",
                                                         "prefer", "train"}  # fmt: skip
    assert len(OPTIONS) > 50


@pytest.mark.parametrize("option", OPTIONS, ids=lambda o: " ".join((*o.command, o.flag)))
def test_a_number_out_of_its_range_is_a_usage_error(
    option: NumericOption, root: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    least, most = option.info.min, option.info.max
    assert least is not None, f"{option.flag} has no least value"
    assert most is not None, f"{option.flag} has no greatest value"
    assert least < most
    for wrong in (*WRONG[option.of], str(least - 1), str(most * 2 + 1)):
        with pytest.raises(SystemExit) as stop:
            root.main([*option.command, *option.required, option.flag, *[wrong] * option.count], prog_name="skipstone")
        said = capsys.readouterr().err
        assert (stop.value.code, f"Invalid value for '{option.flag}'" in said) == (2, True), (wrong, said)


@pytest.mark.parametrize("value", [float("nan"), [1.0, float("nan")]])
def test_nan_is_refused_though_it_compares_with_no_end_of_a_range(value: object) -> None:
    with pytest.raises(typer.BadParameter, match="expected a number, got nan"):
        number(least=0, most=1, help="").callback(value)
    assert number(least=0, most=1, help="").callback(0.5) == 0.5


@pytest.mark.parametrize("flag", ["--policy", "--model", "--solver", "--grid", "--device"])
def test_an_empty_text_is_not_taken_for_the_default(flag: str, root: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        root.main(["generate", "a cat", f"{flag}="], prog_name="skipstone")
    assert stop.value.code == 2
    assert f"Invalid value for '{flag}'" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["a.jpg", "table.md", "grids.JSON", "x/report.html"])
@pytest.mark.parametrize(
    "command",
    [
        ["compare", "a cat", "-p", "fixed"],
        ["bench"],
        ["demo"],
        ["tune", "--prompts", "pebble"],
        ["calibrate", "--prompts", "pebble", "--target", "psnr >= 30 @ 90%"],
        ["prefer", "bench", "-j", "a@http://localhost"],
        ["train", "agent"],
    ],
    ids=lambda command: command[0],
)
def test_the_name_of_a_file_is_not_made_a_folder(
    command: list[str], name: str, root: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        root.main([*command, "--out", name], prog_name="skipstone")
    assert stop.value.code == 2
    assert "expected a folder" in capsys.readouterr().err


def test_the_samples_of_a_comparison_are_one_batch_and_bounded(shell: Any) -> None:
    done = shell("compare", "a cat", "a dog", "-p", "third_order", "-n", str(MAX_PICTURES))
    assert done.code == 2
    assert "skipstone bench" in done.err
