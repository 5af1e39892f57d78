"""Evaluation statistics that add: the metrics of pooled examples, without pooling the examples.

A site sends a `Tally`; the server adds the tallies of a domain's sites and computes `metrics` once, from the sum. That
is exact, where a weighted mean of the sites' F1 scores or AUCs is not. A tally says nothing about the order of a
site's examples: counts are sums, and the scores that an AUC needs are sorted inside their true class.

Conventions for absent classes are those of scikit-learn (`f1_score(average="macro", zero_division=0)`: classes present
in truth or prediction; `balanced_accuracy_score`: classes present in truth) and of seqeval (`mode="strict"`,
`scheme=IOB2`). Without examples every metric is NaN: nothing was measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from seqeval.scheme import IOB2, Tokens

from fedfm.arrays import Arrays
from fedfm.config import Task

PRIMARY: dict[Task, str] = {
    "image-classification": "auc",
    "text-classification": "macro_f1",
    "token-classification": "f1",
}


@dataclass(frozen=True, eq=False)
class Tally:
    """What a set of examples adds to the metrics of its domain; `a + b` is the tally of both sets.

    | task           | counts (int64)                                                                            |
    |----------------|-------------------------------------------------------------------------------------------|
    | classification | `confusion` [C, C]: rows truth, columns prediction                                        |
    | tags           | `spans` [types, 3]: true, predicted, correct entities; `tokens` [2]: correct, total       |

    `scores`, for an AUC only: `class-<c>` holds the float32 probabilities [n_c, C] of the examples of true class c,
    rows in lexicographic order. `loss_sum` is the sum of the examples' losses.
    """

    loss_sum: float
    num_examples: int
    counts: Arrays
    scores: Arrays = field(default_factory=dict)

    def __add__(self, other: Tally) -> Tally:
        return pool([self, other])


def pool(tallies: Sequence[Tally]) -> Tally:
    """The tally of all examples together. Raises ValueError when not all were counted over the same labels."""
    first = tallies[0]
    if unlike := next((tally for tally in tallies if _layout(tally) != _layout(first)), None):
        raise ValueError(f"tallies over different labels do not add: {_layout(first)} and {_layout(unlike)}")
    return Tally(
        sum(tally.loss_sum for tally in tallies),
        sum(tally.num_examples for tally in tallies),
        {name: np.sum([tally.counts[name] for tally in tallies], axis=0) for name in first.counts},
        {name: _sort_rows(np.concatenate([tally.scores[name] for tally in tallies])) for name in first.scores},
    )


def stack(tallies: Sequence[Tally]) -> Arrays:
    """The tallies of K sites of one domain in flat arrays, for a message.

    `loss_sum` and `num_examples` [K]; `counts/<name>` [K, ...]; of scores, whose number differs from site to site,
    `scores/<class>` holds all rows and `rows/<class>` [K] how many of them are each site's. Raises ValueError when
    the sites did not count the same things.
    """
    if len({str(_layout(tally)) for tally in tallies}) > 1:
        raise ValueError(f"tallies over different labels do not stack: {_layout(tallies[0])}, {_layout(tallies[-1])}")
    first = tallies[0]
    return {
        "loss_sum": np.array([tally.loss_sum for tally in tallies], np.float64),
        "num_examples": np.array([tally.num_examples for tally in tallies], np.int64),
        **{f"counts/{name}": np.stack([tally.counts[name] for tally in tallies]) for name in first.counts},
        **{f"scores/{name}": np.concatenate([tally.scores[name] for tally in tallies]) for name in first.scores},
        **{f"rows/{name}": np.array([len(tally.scores[name]) for tally in tallies]) for name in first.scores},
    }


def unstack(arrays: Mapping[str, np.ndarray]) -> list[Tally]:
    """What `stack` has stacked. Raises KeyError or ValueError where an array is missing or of another size."""
    counts = {name.removeprefix("counts/"): array for name, array in arrays.items() if name.startswith("counts/")}
    scores = {
        name.removeprefix("scores/"): np.split(array, np.cumsum(arrays[name.replace("scores/", "rows/")])[:-1])
        for name, array in arrays.items()
        if name.startswith("scores/")
    }
    sizes = arrays["num_examples"]
    if any(len(column) != len(sizes) for column in (arrays["loss_sum"], *counts.values(), *scores.values())):
        raise ValueError("the arrays of the stacked tallies differ in their number of sites")
    return [
        Tally(
            float(arrays["loss_sum"][k]),
            int(sizes[k]),
            {name: column[k] for name, column in counts.items()},
            {name: parts[k] for name, parts in scores.items()},
        )
        for k in range(len(sizes))
    ]


def tally_classification(probabilities: np.ndarray, labels: np.ndarray, loss_sum: float, with_scores: bool) -> Tally:
    """Count `probabilities` [N, C] against `labels` (int64 [N]); `with_scores` keeps what an AUC needs."""
    classes = probabilities.shape[1]
    predicted = probabilities.argmax(axis=1)
    confusion = np.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes)
    scores = {}
    if with_scores:
        single = probabilities.astype(np.float32)
        scores = {f"class-{c}": _sort_rows(single[labels == c]) for c in range(classes)}
    return Tally(float(loss_sum), len(labels), {"confusion": confusion.astype(np.int64)}, scores)


def tally_tags(
    predicted: Sequence[np.ndarray], true: Sequence[np.ndarray], tags: Sequence[str], loss_sum: float
) -> Tally:
    """Count entities and tokens of sentences, given as ids into `tags` (IOB2), one id for each word."""
    counts = sentence_counts(predicted, true, tags)
    sums = {name: table.sum(axis=0, dtype=np.int64) for name, table in counts.items()}
    return Tally(float(loss_sum), len(true), sums)


def sentence_counts(predicted: Sequence[np.ndarray], true: Sequence[np.ndarray], tags: Sequence[str]) -> Arrays:
    """The counts of a `Tally` for each of N sentences: `spans` int32 [N, types, 3], `tokens` int32 [N, 2]."""
    row_of = {kind: row for row, kind in enumerate(entity_types(tags))}
    spans = np.zeros((len(true), len(row_of), 3), np.int32)
    tokens = np.zeros((len(true), 2), np.int32)
    for i, (guess, truth) in enumerate(zip(predicted, true, strict=True)):
        tokens[i] = int(np.equal(guess, truth).sum()), len(truth)
        found, wanted = _entities(guess, tags), _entities(truth, tags)
        for column, entities in enumerate((wanted, found, wanted & found)):
            for kind, _, _ in entities:
                spans[i, row_of[kind], column] += 1
    return {"spans": spans, "tokens": tokens}


def metrics(task: Task, tally: Tally, labels: Sequence[str]) -> dict[str, float]:
    """The metrics of `task` for all examples that were counted, and their mean `loss`.

    image-classification: accuracy, macro_f1, auc, balanced_accuracy; text-classification: accuracy, macro_f1;
    token-classification: precision, recall, f1 (entities, micro average), token_accuracy.
    `labels` are class names or tags. NaN stands for what is undefined on these examples.
    """
    loss = _ratio(tally.loss_sum, tally.num_examples)
    if task == "token-classification":
        spans = _checked(tally.counts["spans"], entity_types(labels))
        precision, recall, f1 = (float(x) for x in _precision_recall_f1(spans.sum(axis=0)))
        scores = {"precision": precision, "recall": recall, "f1": f1}
        if not tally.num_examples:
            scores = dict.fromkeys(scores, np.nan)
        return {"loss": loss, **scores, "token_accuracy": _ratio(*tally.counts["tokens"])}
    confusion = _checked(tally.counts["confusion"], labels)
    _, rows = _present(_class_rows(confusion))
    result = {
        "loss": loss,
        "accuracy": _ratio(np.trace(confusion), confusion.sum()),
        "macro_f1": _mean(_precision_recall_f1(rows)[2]),
    }
    if task == "image-classification":
        support = confusion.sum(axis=1)
        result["auc"] = _macro_auc(tally.scores, len(labels))
        result["balanced_accuracy"] = _mean(np.diag(confusion)[support > 0] / support[support > 0])
    return result


def classification_report(task: Task, tally: Tally, labels: Sequence[str]) -> str:
    """Precision, recall, f1 and support of every class or entity type that occurs in truth or prediction.

    The text has the layout of scikit-learn's report (classes) or seqeval's (entities).
    """
    if task == "token-classification":
        names, rows = entity_types(labels), tally.counts["spans"]
    else:
        names, rows = list(labels), _class_rows(_checked(tally.counts["confusion"], labels))
    present, rows = _present(rows)
    names = [names[row] for row in present]
    scores, support, total = _precision_recall_f1(rows), rows[:, 0], int(rows[:, 0].sum())
    width = max(len("weighted avg"), *map(len, names), 0)
    titles = "".join(f" {title:>9}" for title in ("precision", "recall", "f1-score", "support"))
    lines = [f"{'':>{width}s} {titles}", ""]
    lines += [_report_line(name, *column, n, width) for name, column, n in zip(names, scores.T, support, strict=True)]
    lines.append("")
    micro = _precision_recall_f1(rows.sum(axis=0))
    if task == "token-classification":
        lines.append(_report_line("micro avg", *micro, total, width))
    else:  # every example has one class, so that the micro averages are all the accuracy
        lines.append(f"{'accuracy':>{width}s} {'':>20} {micro[2]:>9.2f} {total:>9}")
    lines.append(_report_line("macro avg", *(_mean(column) for column in scores), total, width))
    lines.append(_report_line("weighted avg", *(_ratio(column @ support, total) for column in scores), total, width))
    return "\n".join(lines) + "\n"


def entity_types(tags: Sequence[str]) -> list[str]:
    """`["Disease"]` for `["O", "B-Disease", "I-Disease"]`, sorted: the rows of `spans`."""
    return sorted({IOB2(tag).tag for tag in tags if tag != "O"})


def _entities(ids: np.ndarray, tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """(type, start, end) of the entities that seqeval's strict mode sees in one sentence."""
    words = [tags[i] for i in ids]
    if not any(word.startswith("B") for word in words):  # most sentences: IOB2 opens an entity with B- only
        return set()
    return {(entity.tag, entity.start, entity.end) for entity in Tokens(words, IOB2).entities}


def _class_rows(confusion: np.ndarray) -> np.ndarray:
    """[C, 3]: true, predicted, correct, as `spans` counts entities."""
    return np.stack([confusion.sum(axis=1), confusion.sum(axis=0), np.diag(confusion)], axis=1)


def _present(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices and rows of the classes that occur in truth or prediction."""
    present = np.flatnonzero(rows[:, :2].any(axis=1))
    return present, rows[present]


def _precision_recall_f1(rows: np.ndarray) -> np.ndarray:
    """[3, ...] from counts [..., 3] of true, predicted, correct; 0 where nothing was predicted or nothing is true."""
    true, predicted, correct = np.moveaxis(rows, -1, 0).astype(np.float64)
    pairs = ((correct, predicted), (correct, true), (2 * correct, true + predicted))
    return np.stack([np.divide(a, b, out=np.zeros_like(a), where=b > 0) for a, b in pairs])


def _macro_auc(scores: Mapping[str, np.ndarray], classes: int) -> float:
    """Mean one-vs-rest area under the ROC curve; with two classes, the area for the second one."""
    of_class = [scores[f"class-{c}"] for c in range(classes)]
    if not all(np.isfinite(rows).all() for rows in of_class):
        return np.nan
    asked = [1] if classes == 2 else range(classes)
    areas = []
    for c in asked:
        rest = [rows[:, c] for other, rows in enumerate(of_class) if other != c]
        areas.append(_auc(of_class[c][:, c], np.concatenate(rest) if rest else np.empty(0, np.float32)))
    return _mean(np.array([area for area in areas if not np.isnan(area)]))


def _auc(positives: np.ndarray, negatives: np.ndarray) -> float:
    """P(positive > negative) + P(equal) / 2 over all pairs (Mann and Whitney 1947, doi.org/10.1214/aoms/1177730491).

    Twice the wins is a sum of integers, so that the order of the scores cannot change a bit of the result.
    """
    ranked = np.sort(negatives)
    below = np.searchsorted(ranked, positives, "left").sum()
    not_above = np.searchsorted(ranked, positives, "right").sum()
    return _ratio(int(below + not_above), 2 * len(positives) * len(negatives))


def _sort_rows(rows: np.ndarray) -> np.ndarray:
    return rows[np.lexsort(rows.T[::-1])]


def _layout(tally: Tally) -> dict[str, tuple[int, ...]]:
    counts = {name: count.shape for name, count in tally.counts.items()}
    return counts | {name: rows.shape[1:] for name, rows in tally.scores.items()}


def _checked(counts: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    if len(counts) != len(classes):
        raise ValueError(f"a tally over {len(counts)} classes, but {len(classes)} labels")
    return counts


def _ratio(part: float, whole: float) -> float:
    return float(part) / float(whole) if whole else np.nan


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else np.nan


def _report_line(name: str, precision: float, recall: float, f1: float, support: int, width: int) -> str:
    return f"{name:>{width}s}  {precision:>9.2f} {recall:>9.2f} {f1:>9.2f} {support:>9}"
