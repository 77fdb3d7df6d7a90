"""Policies pushed to a hub and read from it, by `huggingface_hub` and a hub of its endpoints on this machine."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from domain_prompts import TRAINING
from hub_stand_in import TOKEN, StandIn, serving, visit

import skipstone
from skipstone.errors import CertificateError, OutputError, SpecError
from skipstone.evaluation.columns import parse_column
from skipstone.policies.certified import Certified
from skipstone.policies.domains.policy import ByDomain
from skipstone.policies.hub import push_to_hub
from skipstone.policies.seen_prompts import digest_prompt, seen_prompts
from skipstone.policies.storage import auto, read_fallback, read_policy, save_policy
from skipstone.tuning.domains.fit import Inputs, fit_classifier
from skipstone.tuning.domains.report import save_domains

CERTIFICATE = Path(__file__).parents[1] / "fixtures" / "v0_1_0" / "certificate"
SPEC = "error_control(tol=0.02) | budget(calls=20)"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """An empty hub that we are logged in to; the working folder is an empty one."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    with serving() as found:
        visit(found.address, tmp_path / "cache", monkeypatch)
        yield found


def files(hub: StandIn, repo: str, branch: str = "main") -> dict[str, bytes]:
    repository = hub.repositories[repo]
    return repository.commits[repository.branches[branch]]


def test_a_spec_is_read_wherever_a_folder_is(hub: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert push_to_hub(SPEC, "me/careful") == f"{hub.address}/me/careful"
    assert hub.repositories["me/careful"].private
    policy = skipstone.parse("policy", SPEC)
    assert skipstone.load_policy("me/careful") == policy
    assert parse_column("me/careful @ 30", None, None, 50).policy == policy
    visit(f"http://127.0.0.1:{closed_port()}", tmp_path / "cache", monkeypatch)  # from the cache
    assert skipstone.load_policy("me/careful") == policy


def test_a_preset_keeps_its_fallback(hub: StandIn, tmp_path: Path) -> None:
    save_policy("fast", tmp_path / "kept")
    push_to_hub("fast", "me/quick")
    push_to_hub(skipstone.policy("fast"), "me/plain")  # a policy has forgotten its name
    assert read_policy(tmp_path / "kept") == skipstone.load_policy("me/quick") == skipstone.policy("fast")
    fallback = skipstone.policy("error_control(tol=0.01)")
    assert read_fallback(tmp_path / "kept") == read_fallback("me/quick") == fallback
    assert read_fallback("me/plain") is None
    column = parse_column("me/quick", None, None, 50).fallback
    assert column is not None
    assert column.policy == fallback


def test_a_newer_commit_is_read_and_an_older_revision_stays(hub: StandIn) -> None:
    push_to_hub("interval(every=2)", "me/mine")
    push_to_hub("interval(every=3)", "me/mine", revision="bold")
    assert skipstone.load_policy("me/mine", revision="bold") == skipstone.policy("interval(every=3)")
    first = hub.repositories["me/mine"].branches["main"]
    push_to_hub("interval(every=4)", "me/mine")
    assert skipstone.load_policy("me/mine") == skipstone.policy("interval(every=4)")
    assert skipstone.load_policy("me/mine", revision=first) == skipstone.policy("interval(every=2)")


def test_a_folder_of_grids(hub: StandIn, tmp_path: Path) -> None:
    """As `skipstone tune` leaves it: several policies, figures, and what was drawn, which stays here."""
    for calls in (10, 20):
        save_policy(f"path(times='0.{calls}')", tmp_path / "grids" / f"path-{calls}", calls=calls)
    (tmp_path / "grids" / "paths.json").write_text("{}")
    (tmp_path / "grids" / "drawn").mkdir()
    (tmp_path / "grids" / "drawn" / "sample.npz").write_bytes(b"large")
    push_to_hub(tmp_path / "grids", "me/grids")
    assert set(files(hub, "me/grids")) == {
        ".gitattributes", "README.md", "paths.json", "path-10/policy.json", "path-20/policy.json"
    }  # fmt: skip
    assert skipstone.load_policy("me/grids/path-20") == skipstone.policy("path(times='0.20')")
    with pytest.raises(SpecError, match=r"^me/grids has no policy.json\. Expected a folder with a policy.json"):
        skipstone.load_policy("me/grids")


def test_settings_by_domain_arrive_with_their_classifier(hub: StandIn, tmp_path: Path) -> None:
    classifier, _ = fit_classifier(Inputs(TRAINING))
    folder = save_domains(tmp_path / "tuned", "interval(every=2)", {"food": "interval(every=3)"}, classifier, ["a cat"])
    push_to_hub(folder, "me/domains")
    policy = skipstone.load_policy("me/domains")
    assert isinstance(policy, ByDomain)
    assert policy.settings.domains == {"food": skipstone.policy("interval(every=3)")}
    text = "a bowl of signature soup beside pears"
    assert policy.settings.classifier.classify(text) == classifier.classify(text)
    assert digest_prompt("a cat") in seen_prompts(policy)
    with pytest.raises(SpecError, match="only settings are pushed"):
        push_to_hub(ByDomain(str(folder)), "me/other")


def test_a_certificate_arrives_with_what_belongs_to_it(hub: StandIn, tmp_path: Path) -> None:
    here = skipstone.load_policy(CERTIFICATE)
    assert isinstance(here, Certified)
    push_to_hub(here, "me/promised")
    assert files(hub, "me/promised")["README.md"].startswith(b"---\nlibrary_name: skipstone\n")
    there = skipstone.load_policy("me/promised")
    assert isinstance(there, Certified)
    assert (there, there.certificate, there.point) == (here, here.certificate, here.point)
    assert there.files["prompts.jsonl"] == here.files["prompts.jsonl"]
    with pytest.raises(CertificateError, match="The certificate was made for"):
        skipstone.load_policy("me/promised", SimpleNamespace())


def test_a_folder_that_is_here_is_taken_before_the_hub(hub: StandIn) -> None:
    save_policy("interval(every=2)", "me/mine")
    push_to_hub("interval(every=3)", "me/mine")
    asked = len(hub.requests)
    assert skipstone.load_policy("me/mine") == skipstone.policy("interval(every=2)")
    assert len(hub.requests) == asked


def test_what_the_hub_does_not_have_is_one_sentence(
    hub: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push_to_hub("fixed", "me/mine")
    hub.repositories["me/mine"].commit("broken", {"policy.json": b"{"})
    hub.repositories["me/mine"].commit("other", {"policy.json": b'{"policy": "nonsense"}'})
    for name, revision, said in (
        ("me/none", None, "me/none is neither a folder here nor a public policy on the Hugging Face hub"),
        ("me/mine/deep", None, "me/mine/deep has no deep/policy.json"),
        ("me/mine", "v9", "me/mine has no revision 'v9'"),
        ("me/mine", "broken", "policy.json"),
        ("me/mine", "other", "No policy is called 'nonsense'"),
        ("me/-bad-", None, "me/-bad- is neither a folder here nor a name that the Hugging Face hub has"),
    ):
        with pytest.raises(SpecError, match=f"^[^\n]*{said}[^\n]*$"):
            skipstone.load_policy(name, revision=revision)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(SpecError, match="a private one needs `hf auth login`"):
        skipstone.load_policy("me/mine", revision="main")
    with pytest.raises(SpecError, match="me/none is neither"):
        auto("me/none")
    visit(f"http://127.0.0.1:{closed_port()}", tmp_path / "cache", monkeypatch)
    with pytest.raises(SpecError, match=r"me/other .* the Hugging Face hub cannot be reached"):
        skipstone.load_policy("me/other")
    with pytest.raises(
        OutputError, match=r"^me/other cannot be pushed: no answer from the Hugging Face hub \(\w+\)\.$"
    ):
        push_to_hub("fixed", "me/other")


def test_what_cannot_be_pushed_is_said_before_anything_is_sent(hub: StandIn, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\nfrom typing import ClassVar\nfrom skipstone import Policy\n"
        "@dataclass(frozen=True)\nclass Mine(Policy):\n    name: ClassVar[str] = 'mine'\n"
    )
    own = parse_column(f"{tmp_path / 'mine.py'}:Mine", None, None, 50, run_files=True).policy
    for policy, repo, error, said in (
        ("interval(every=2)", "nobody", OutputError, "org/name, got 'nobody'"),
        (tmp_path / "empty", "me/empty", SpecError, "Expected a folder with a policy.json"),
        (own, "me/mine", SpecError, "made of .*mine.py"),
        (3, "me/mine", SpecError, "Expected a policy, its spec or its folder, got int"),
        ("nonsense", "me/mine", SpecError, "No policy is called 'nonsense'"),
    ):
        with pytest.raises(error, match=said):
            push_to_hub(policy, repo)  # type: ignore[arg-type]  # a policy that is none
    assert hub.requests == []
    with pytest.raises(OutputError, match="you/mine is not yours to write to"):
        push_to_hub("fixed", "you/mine")


def closed_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: Any = taken.getsockname()[1]
    return int(port)
