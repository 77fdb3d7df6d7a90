"""Quotas of keys, keys, kept files, and the rows that are chosen."""

from __future__ import annotations

from pathlib import Path

import pytest

from skipstone.errors import SpecError
from skipstone.evaluation.row_times import RowTime, choose_rows, measure_rows
from skipstone.serving.api.files import KeptFiles
from skipstone.serving.api.keys import Keys
from skipstone.serving.limits import Limits, Quotas
from skipstone.serving.refusals import Busy, RequestRefused, WrongKey


def test_a_key_gets_its_pictures_a_minute_and_no_other_pays_for_it() -> None:
    now = [0.0]
    quotas = Quotas(6, lambda: now[0])
    quotas.spend("a", 6)
    with pytest.raises(Busy) as refused:
        quotas.spend("a", 2)
    assert refused.value.retry_after == 20
    quotas.spend("b", 6)
    now[0] = 20.0
    quotas.spend("a", 2)
    with pytest.raises(Busy):
        quotas.spend("a", 1)
    now[0] = 1e6
    quotas.spend("a", 6)
    with pytest.raises(Busy):
        quotas.spend("a", 1)
    with pytest.raises(RequestRefused, match="at most 6"):
        quotas.spend("c", 7)


def test_limits_have_limits() -> None:
    with pytest.raises(SpecError, match="queue"):
        Limits(queue=0)


def test_keys_are_read_from_a_file_and_told_apart(tmp_path: Path) -> None:
    file = tmp_path / "keys.txt"
    file.write_text("# of the shop\n0123456789abcdef\nfedcba9876543210  # of the lab\n", encoding="utf-8")
    keys = Keys.read(file)
    first, second = (keys.check(f"Bearer {key}") for key in ("0123456789abcdef", "fedcba9876543210"))
    assert first != second
    assert "0123456789abcdef" not in (first, repr(keys))
    for wrong in (None, "", "0123456789abcdef", "Bearer 0123456789abcde", "Bearer ", "Bearer \udcff"[:-1]):
        with pytest.raises(WrongKey):
            keys.check(wrong)
    assert Keys().check(None) == ""


@pytest.mark.parametrize("text", ["", "# nothing\n", "short\n"])
def test_files_without_a_usable_key_are_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "keys.txt"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(SpecError):
        Keys.read(file)


def test_kept_files_are_forgotten_when_they_are_many_or_old() -> None:
    now = [0.0]
    kept = KeptFiles(lambda: now[0], most=2, seconds=10.0)
    names = [kept.keep(bytes([k]), "png") for k in range(3)]
    assert kept.find(names[0]) is None
    found = kept.find(names[2])
    assert found is not None
    assert found.data == b"\x02"
    assert kept.find("../../etc/passwd") is None
    now[0] = 11.0
    assert kept.find(names[2]) is None


def test_rows_are_those_after_which_more_do_not_pay() -> None:
    assert choose_rows([RowTime(2, 1.0), RowTime(4, 1.2), RowTime(8, 1.6), RowTime(16, 3.15)]) == 8
    assert choose_rows([RowTime(2, 1.0), RowTime(4, 2.0), RowTime(8, 2.0)]) == 2  # flat first: no look beyond
    assert choose_rows([RowTime(1, 1.0)]) == 1


def test_measuring_ends_at_the_most_rows_or_where_memory_ends() -> None:
    from analytic import AnalyticModel

    from skipstone.testing.backbones import Mixture

    class Small(Mixture):
        def predict(self, queries):  # type: ignore[no-untyped-def]
            if len(queries) > 4:
                raise MemoryError
            return super().predict(queries)

    model, ticks = AnalyticModel(), iter(range(1000))
    times = measure_rows(model.backbone, model.problem("a"), 20, lambda: float(next(ticks)))
    assert [t.rows for t in times] == [2, 4, 8, 16]
    small = measure_rows(Small(guidance=2.0), model.problem("a"), 64, lambda: float(next(ticks)))
    assert [t.rows for t in small] == [2, 4, 8]
