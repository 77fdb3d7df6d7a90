"""How well domains of T2I-CompBench's prompts are told apart: `python -m research.domains.classifier DATA`.

A classifier is trained on the files NAME_train.txt, whose names are the domains, and tested on NAME_val.txt. Prompts of
other sets are of no domain: how many of them it takes for one, and how well confidence and distance tell them from the
val prompts (area under the ROC curve; 0.5 is chance). Writes classifier.md, classifier.json and confusion.png.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from skipstone.evaluation.figures import PAPER, figure_to_png
from skipstone.evaluation.markdown import format_table
from skipstone.evaluation.prompt import Prompt
from skipstone.evaluation.prompts import load_prompts
from skipstone.policies.domains.classifier import DomainClassifier, softmax
from skipstone.policies.domains.features import FeatureKind
from skipstone.tuning.domains.fit import FitReport, Inputs, calibration_error, fit_classifier
from skipstone.tuning.domains.labelled import check_labelled
from skipstone.tuning.domains.report import draw_confusion

HERE = Path(__file__).parent
DOMAINS = ("3d_spatial", "color", "complex", "non_spatial", "numeracy", "shape", "spatial", "texture")
OTHERS = {
    "PartiPrompts": "prompts_parti/PartiPrompts.tsv",
    "DrawBench": "prompts_drawbench/DrawBench200.txt",
    "DPG-Bench": "prompts_dpg_bench/dpg_bench_prompts.jsonl",
    "OCR prompts": "prompts_ocr/ocr_test.txt",
    "COCO captions": "prompts_coco/coco2014val_captions_30k.txt",
    "TIFA": "prompts_tifa/tifa_v1.0_text_inputs.json",
    "GenEval": "prompts_geneval/evaluation_metadata.jsonl",
}
MOST = 1000  # prompts of another set
SHOWN = 12  # pairs of domains that are confused most


def read(folder: Path, part: str) -> list[Prompt]:
    """The prompts of the files NAME_part.txt."""
    found = []
    for name in DOMAINS:
        lines = (folder / f"{name}_{part}.txt").read_text(encoding="utf-8").splitlines()
        found += [Prompt(f"{name}-{k}", line.strip(), name) for k, line in enumerate(lines) if line.strip()]
    return found


def pebble_states(prompts: Sequence[Prompt]) -> Any:
    """Mean text states by Pebble's encoder, which knows 100 words."""
    from skipstone_pebble.model import Pebble

    model = Pebble.load()
    return np.stack([model.family.text_states(model.encode(prompt.text)).mean(0).numpy() for prompt in prompts])


def states_of(kind: FeatureKind, prompts: Sequence[Prompt]) -> Any:
    """What features of this kind read beside the text."""
    return pebble_states(prompts) if kind == "states" else None


def measure(kind: FeatureKind, train: list[Prompt], val: list[Prompt], data: Path) -> dict[str, Any]:
    """All figures of one kind of features."""
    classifier, folds = fit_classifier(Inputs(train, states_of(kind, train), kind))
    labels = np.array([DOMAINS.index(prompt.category) for prompt in val])
    probabilities, distances = predict(classifier, kind, val)
    tested = judge(classifier, folds, probabilities, distances, labels)
    raw = calibration_error(softmax(np.log(probabilities) * classifier.temperature), labels)
    sets = {
        name: strangers(classifier, kind, load_prompts(data / file, limit=MOST), (probabilities, distances))
        for name, file in OTHERS.items()
    }
    return {
        "kind": kind,
        "trained": len(train),
        "folds": folds.as_dict(),
        "val": tested.as_dict() | {"raw_ece": raw},
        "temperature": classifier.temperature,
        "limits": vars(classifier.limits),
        "bytes": len(classifier.to_bytes()),
        "others": sets,
        "confused": confused(tested, val, probabilities),
    }


def predict(classifier: DomainClassifier, kind: FeatureKind, prompts: Sequence[Prompt]) -> tuple[Any, Any]:
    """Probabilities (prompts, domains) and distances."""
    rows = classifier.features.matrix([prompt.text for prompt in prompts], states_of(kind, prompts))
    near = (rows @ classifier.anchors.T).max(1)
    logits = rows @ classifier.weights.T + classifier.bias
    return softmax(logits / classifier.temperature), 1.0 - (near.toarray().ravel() if kind == "words" else near)


def judge(classifier: DomainClassifier, folds: FitReport, probabilities: Any, distances: Any, labels: Any) -> FitReport:
    """The report on the val prompts, which chose nothing."""
    best, limits = probabilities.argmax(1), classifier.limits
    right = best == labels
    believed = (probabilities.max(1) >= limits.confidence) & (distances <= limits.distance)
    counts = np.zeros((len(DOMAINS), len(DOMAINS)), int)
    np.add.at(counts, (labels, best), 1)
    return replace(
        folds,
        prompts=len(labels),
        accuracy=float(right.mean()),
        ece=calibration_error(probabilities, labels),
        believed=float(believed.mean()),
        accuracy_believed=float(right[believed].mean()),
        confusion=counts,
    )


def strangers(
    classifier: DomainClassifier, kind: FeatureKind, prompts: Sequence[Prompt], own: tuple[Any, Any]
) -> dict[str, Any]:
    """How prompts of no domain are told from the val prompts."""
    from sklearn.metrics import roc_auc_score

    probabilities, distances = predict(classifier, kind, prompts)
    sure = probabilities.max(1) >= classifier.limits.confidence
    near = distances <= classifier.limits.distance
    own_first = np.r_[np.ones(len(own[1])), np.zeros(len(prompts))]
    return {
        "prompts": len(prompts),
        "taken": float((sure & near).mean()),
        "confidence alone": float(sure.mean()),
        "distance alone": float(near.mean()),
        "auc confidence": float(roc_auc_score(own_first, np.r_[own[0].max(1), probabilities.max(1)])),
        "auc distance": float(roc_auc_score(own_first, -np.r_[own[1], distances])),
    }


def confused(tested: FitReport, val: Sequence[Prompt], probabilities: Any) -> list[list[Any]]:
    """The commonest confusions, with a prompt of each."""
    best = probabilities.argmax(1)
    pairs = []
    for i, j in zip(*np.nonzero(tested.confusion), strict=True):
        if i != j:
            example = next(p.text for p, k in zip(val, best, strict=True) if p.category == DOMAINS[i] and k == j)
            pairs.append([DOMAINS[i], DOMAINS[j], int(tested.confusion[i, j]), example])
    return sorted(pairs, key=lambda pair: -pair[2])[:SHOWN]


def page(found: Sequence[dict[str, Any]]) -> str:
    """The tables."""
    rows = [["features", "right on val", "calibration error", "without temperature", "believed", "right of these",
             "file"]]  # fmt: skip
    for one in found:
        val = one["val"]
        shares = [f"{val[name]:.1%}" for name in ("accuracy", "believed", "accuracy_believed")]
        rows.append([one["kind"], shares[0], f"{val['ece']:.3f}", f"{val['raw_ece']:.3f}", *shares[1:],
                     f"{one['bytes'] / 1e6:.1f} MB"])  # fmt: skip
    first = found[0]
    matrix = [["is / taken for", *DOMAINS]]
    matrix += [[name, *map(str, row)] for name, row in zip(DOMAINS, first["val"]["confusion"], strict=True)]
    lines = [
        "# Domains of T2I-CompBench",
        "",
        f"Trained on {first['trained']} prompts of the train files, tested on {first['val']['prompts']} of the val "
        "files. Temperature and limits are from folds of the train files.",
        "",
        *format_table(rows, [":--", *["--:"] * 6]),
        "",
        "## Which is taken for which, by words",
        "",
        *format_table(matrix, [":--", *["--:"] * len(DOMAINS)]),
        "",
        "![The same as a picture](confusion.png)",
        "",
        *format_table([["is", "taken for", "prompts", "one of them"], *[list(map(str, p)) for p in first["confused"]]]),
        "",
    ]
    for one in found:
        lines += [f"## Prompts of other sets, by {one['kind']}", "", *_others(one), ""]
    return "\n".join(lines) + "\n    python -m research.domains.classifier DATA\n"


def _others(one: dict[str, Any]) -> list[str]:
    rows = [["set", "prompts", "taken for a domain", "by confidence alone", "by distance alone", "AUC of confidence",
             "AUC of distance"]]  # fmt: skip
    for name, seen in one["others"].items():
        shares = [f"{seen[key]:.1%}" for key in ("taken", "confidence alone", "distance alone")]
        areas = [f"{seen[key]:.3f}" for key in ("auc confidence", "auc distance")]
        rows.append([name, str(seen["prompts"]), *shares, *areas])
    return format_table(rows, [":--", *["--:"] * 6])


def plot(report: FitReport) -> bytes:
    """The confusion matrix as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6, 5.2), layout="constrained", dpi=140, facecolor=PAPER)
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    draw_confusion(axes, report)
    axes.set_title("T2I-CompBench, val prompts", fontsize=9)
    return figure_to_png(figure)


def main() -> None:
    """Measure, and write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="Folder with prompts_t2i_compbench and the other sets.")
    parser.add_argument("--out", type=Path, default=HERE, help="Where the files are written.")
    asked = parser.parse_args()
    folder = asked.data / "prompts_t2i_compbench"
    train = list(check_labelled(read(folder, "train"), str(folder)).prompts)
    known = {prompt.text.lower() for prompt in train}
    val = [prompt for prompt in read(folder, "val") if prompt.text.lower() not in known]
    kinds: tuple[FeatureKind, ...] = ("words", "states")
    found = [measure(kind, train, val, asked.data) for kind in kinds]
    (asked.out / "classifier.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (asked.out / "classifier.md").write_text(page(found), encoding="utf-8")
    val_report = found[0]["val"]
    report = FitReport(**{**val_report, "confusion": np.array(val_report["confusion"]), "domains": DOMAINS})
    (asked.out / "confusion.png").write_bytes(plot(report))


if __name__ == "__main__":
    main()
