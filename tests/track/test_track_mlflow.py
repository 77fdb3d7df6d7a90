"""Folders in a real MLflow: a server with SQLite, and a database file; what was logged is read back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from skipstone.errors import OutputError, SpecError

mlflow = pytest.importorskip("mlflow")

from track.folders import CERTIFICATE, STUDENT, bench_folder  # noqa: E402
from track.servers import mlflow_server  # noqa: E402

from skipstone_track import registry  # noqa: E402
from skipstone_track.connection import DEFAULT_URI, connect, display_uri, experiment_id, parse_uri  # noqa: E402
from skipstone_track.manifest import digest, manifest  # noqa: E402
from skipstone_track.tracker import DIGEST, MlflowTracker  # noqa: E402


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    """URI of an empty database; its tables take seconds to make, so tests share it and use names of their own."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('database') / 'runs.db'}"
    with connect(uri, create=True) as client:
        experiment_id(client, uri)
    return uri


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with mlflow_server(tmp_path_factory.mktemp("server")) as uri:
        yield uri


def test_a_benchmark_is_a_run_with_its_rows_inside(server: str, tmp_path: Path) -> None:
    folder = bench_folder(tmp_path / "bench", {"balanced": [30.0, 40.0, 50.0]})
    logged = MlflowTracker(server).log_folder(folder)
    assert logged.new
    assert logged.run_id in logged.shown
    with connect(server) as client:
        run = client.get_run(logged.run_id)
        assert run.info.status == "FINISHED"
        assert run.data.params["guidance"] == "3.0"
        assert run.data.tags["kind"] == "bench"
        assert run.data.tags["machine"] == "a machine"
        assert run.inputs.dataset_inputs[0].dataset.name == "some"
        inside = client.search_runs([run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{logged.run_id}'")
        assert [child.info.run_name for child in inside] == ["balanced"]
        assert inside[0].data.metrics["psnr_full.median"] == 40.0
        names = {one.path for one in client.list_artifacts(logged.run_id)}
        assert names == {"bench.json", "skipstone_files.json", "samples.jsonl"}
        place = client.download_artifacts(logged.run_id, "samples.jsonl", str(tmp_path))
    assert Path(place).read_bytes() == (folder / "samples.jsonl").read_bytes()


def test_metrics_of_a_training_have_their_steps(server: str) -> None:
    logged = MlflowTracker(server).log_folder(STUDENT)
    lines = [json.loads(line) for line in (STUDENT / "log.jsonl").read_text().splitlines()]
    with connect(server) as client:
        history = client.get_metric_history(logged.run_id, "loss")
    found = {(one.step, one.value) for one in history}
    assert {(line["step"], line["loss"]) for line in lines} <= found


def test_the_same_folder_is_logged_once_and_a_changed_one_again(database: str, tmp_path: Path) -> None:
    folder = bench_folder(tmp_path / "bench", {"once": [30.0]})
    tracker = MlflowTracker(database)
    first, second = tracker.log_folder(folder), tracker.log_folder(folder)
    assert first.new
    assert not second.new
    assert first.run_id == second.run_id
    bench_folder(folder, {"once": [31.0]})
    assert tracker.log_folder(folder).new


def test_a_run_whose_logging_was_cut_off_is_logged_again(database: str, tmp_path: Path) -> None:
    folder = bench_folder(tmp_path / "bench", {"cut": [30.0]})
    with connect(database) as client:
        experiment = experiment_id(client, database)
        half = client.create_run(experiment, tags={DIGEST: digest(manifest(folder))}).info.run_id
    logged = MlflowTracker(database).log_folder(folder)
    assert logged.new
    assert logged.run_id != half
    with connect(database) as client:
        assert client.get_run(half).info.lifecycle_stage == "deleted"


def test_a_registered_folder_comes_back_as_it_was(database: str, tmp_path: Path) -> None:
    first = registry.register(CERTIFICATE, "fast", "champion", database)
    assert (first.number, first.kind, first.aliases) == (1, "calibrate", ("champion",))
    assert registry.register(CERTIFICATE, "fast", None, database).number == 1
    folder = registry.fetch("models:/fast@champion", database, tmp_path)
    assert manifest(folder) == manifest(CERTIFICATE)
    assert folder.name == "fast"


def test_an_alias_moves_and_moves_back(database: str, tmp_path: Path) -> None:
    other = shutil.copytree(CERTIFICATE, tmp_path / "other")
    (other / "README.md").write_text("another")
    registry.register(CERTIFICATE, "moved", "champion", database)
    assert registry.register(other, "moved", "challenger", database).number == 2
    assert registry.promote("moved", "challenger", target=database).number == 2
    assert registry.find("models:/moved@champion", database).number == 2
    registry.promote("moved", "1", target=database)
    assert registry.find("models:/moved@champion", database).number == 1


@pytest.mark.parametrize("hide", [False, True], ids=["a file", "a file and the manifest"])
def test_files_that_were_changed_after_registration_are_refused(database: str, tmp_path: Path, hide: bool) -> None:
    name = f"changed-{hide}"
    folder = shutil.copytree(STUDENT, tmp_path / "student")
    (folder / "README.md").write_text(f"one of its own {hide}")
    registry.register(folder, name, "challenger", database)
    with connect(database) as client:
        place = Path(
            client.get_run(client.get_model_version(name, "1").run_id).info.artifact_uri.removeprefix("file://")
        )
    (place / "student.json").write_text("{}")
    if hide:
        (place / "skipstone_files.json").write_text(json.dumps({}))
    with pytest.raises(OutputError, match=r"are not those that were registered: student\.json was changed"):
        registry.promote(name, "challenger", target=database)
    with pytest.raises(OutputError, match="are not those"):
        registry.fetch(f"models:/{name}/1", database, tmp_path / "cache")
    with pytest.raises(SpecError, match="no such version"):
        registry.find(f"models:/{name}@champion", database)


def test_results_that_nothing_runs_are_not_registered(database: str, tmp_path: Path) -> None:
    folder = bench_folder(tmp_path / "bench", {"row": [30.0]})
    with pytest.raises(OutputError, match="results of bench are logged, not registered"):
        registry.register(folder, "results", None, database)


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("models:/nobody@champion", "nothing is registered as 'nobody'"),
        ("models:/a'b@champion", "expected a letter"),
        ("models:/fast", "Expected models:/NAME@ALIAS"),
    ],
)
def test_references_that_name_nothing(database: str, reference: str, said: str) -> None:
    with pytest.raises(SpecError, match=said):
        registry.find(reference, database)


def test_a_tracker_that_is_down_is_one_sentence(tmp_path: Path) -> None:
    folder = bench_folder(tmp_path / "bench", {"down": [30.0]})
    with pytest.raises(OutputError, match=r"^http://127.0.0.1:9: "):
        MlflowTracker("http://127.0.0.1:9").log_folder(folder)


def test_a_question_makes_no_database(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'none.db'}"
    for ask in (lambda: registry.find("models:/fast@champion", uri), lambda: registry.versions(None, uri)):
        with pytest.raises(OutputError, match=r"There is no database .*none\.db: log or register something first"):
            ask()
    assert not list(tmp_path.iterdir())


def test_where_runs_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert parse_uri("mlflow") == DEFAULT_URI
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host:5000")
    assert parse_uri("mlflow") == "http://host:5000"
    assert parse_uri("sqlite:///a.db") == "sqlite:///a.db"
    assert display_uri("http://me:secret@host/") == "http://***@host/"
    for wrong in ("mlflw", "ftp://host", "", "file:///tmp"):
        with pytest.raises(SpecError, match="--track: expected mlflow"):
            parse_uri(wrong)
