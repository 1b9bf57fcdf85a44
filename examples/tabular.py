"""Columns of categories and numbers: embeddings and a small network, beside what is usual here.

    python examples/tabular.py                  # a made-up table, no network
    python examples/tabular.py --download       # the census table "adult" of OpenML
    python examples/tabular.py --smoke          # seconds

A batch is (categories, numbers, target); each category has a vector that is learned. The same split
is given to logistic regression and gradient boosting, with scikit-learn's defaults.

Reached, over 3 splits of 20,000 rows: embeddings 87.1 +- 0.5 %, gradient boosting 82.4 +- 0.3 %,
logistic regression 63.4 +- 0.9 %. The made-up table is one of smooth clusters, which suits a
network; on real ones boosted trees are hard to beat.
"""

import argparse
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.compose import make_column_transformer
from sklearn.datasets import fetch_openml, make_classification
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from torch import Tensor, nn

from onecycle import DataLoaders, Learner, accuracy
from onecycle.data import InMemoryLoader


def made_up(n: int) -> tuple[Any, Any]:
    """Return a table of 8 numbers and 6 columns of 3 to 13 categories, and two classes."""
    x, y = make_classification(n, 14, n_informative=10, n_clusters_per_class=8, random_state=0)
    table, chance = pd.DataFrame(x).add_prefix("c"), np.random.default_rng(0)
    for i in range(6):
        ranges = pd.qcut(x[:, i], 3 + 2 * i, labels=False)
        table[f"c{i}"] = pd.Categorical(chance.permutation(3 + 2 * i)[ranges])  # in no order
    return table, y


def adult() -> tuple[Any, Any]:
    found = fetch_openml("adult", version=2, as_frame=True)
    return found.data, (found.target == ">50K").to_numpy().astype(int)


class Tabular(nn.Module):
    """A vector for each category; all of them and the numbers go through two layers."""

    def __init__(self, sizes: list[int], numbers: int, width: int = 128) -> None:
        super().__init__()
        dims = [min(50, (size + 1) // 2) for size in sizes]
        self.vectors = nn.ModuleList(map(nn.Embedding, sizes, dims))
        first = nn.Linear(sum(dims) + numbers, width), nn.ReLU(), nn.BatchNorm1d(width)
        second = nn.Linear(width, width), nn.ReLU(), nn.BatchNorm1d(width)
        self.body = nn.Sequential(*first, *second, nn.Linear(width, 2))

    def forward(self, categories: Tensor, numbers: Tensor) -> Tensor:
        """Return logits (N, 2) of categories (N, C) and numbers (N, D)."""
        columns = zip(self.vectors, categories.unbind(1), strict=True)
        found: Tensor = self.body(torch.cat([*(v(c) for v, c in columns), numbers], dim=1))
        return found


def network(split: list[Any], names: list[str], seed: int) -> float:
    train, test, y, y_test = split
    numbers = [name for name in train if name not in names]
    scaler = StandardScaler().fit(train[numbers])
    torch.manual_seed(seed)

    def loader(table: Any, target: Any, **options: Any) -> InMemoryLoader:
        codes = np.stack([table[name].cat.codes + 1 for name in names], axis=1)  # 0 is missing
        scaled = scaler.transform(table[numbers])
        return InMemoryLoader(codes.astype("int64"), scaled, target, batch_size=256, **options)

    sizes = [len(train[name].cat.categories) + 1 for name in names]
    loaders = DataLoaders(loader(train, y, shuffle=True, seed=seed), loader(test, y_test))
    learn = Learner(loaders, Tabular(sizes, len(numbers)), metrics=[accuracy], wd=0.1)
    with learn.no_logging():
        learn.fit_one_cycle(5, learn.lr_find())
    return float(learn.recorder.history[-1]["accuracy"])


def usual(names: list[str], seed: int) -> dict[str, Any]:
    encode = (OneHotEncoder(handle_unknown="ignore"), names)
    columns = make_column_transformer(encode, remainder=StandardScaler())
    trees = HistGradientBoostingClassifier(categorical_features=names, random_state=seed)
    linear = make_pipeline(columns, LogisticRegression(max_iter=1000))
    return {"logistic regression": linear, "gradient boosting": trees}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="A network beside scikit-learn on a table.")
    parser.add_argument("--download", action="store_true", help='take "adult" from OpenML')
    parser.add_argument("--seeds", type=int, default=3, help="splits")
    parser.add_argument("--smoke", action="store_true", help="2,000 rows, one split")
    options = parser.parse_args(argv)
    rows, seeds = (2000, 1) if options.smoke else (20000, options.seeds)
    table, y = adult() if options.download else made_up(rows)
    names = list(table.select_dtypes("category"))
    print(f"{len(table):,} rows, {len(names)} columns of categories, {table.shape[1]} in all")
    scores: dict[str, list[float]] = {}
    for seed in range(seeds):
        split = train_test_split(table, y, random_state=seed)
        scores.setdefault("embeddings, one cycle", []).append(network(split, names, seed))
        for name, model in usual(names, seed).items():
            model.fit(split[0], split[2])
            scores.setdefault(name, []).append(model.score(split[1], split[3]))
    for name, own in scores.items():
        spread = statistics.stdev(own) if seeds > 1 else 0.0
        print(f"{name:22} accuracy {statistics.mean(own):.2%} +- {spread:.2%}")


if __name__ == "__main__":
    main()
