"""How often a winner is named among models that are equal: at most 5 % of the trials may have any.

Every model is right on a picture with the same probability, which depends on the picture, so that their mistakes go
together as those of real models do. A trial counts as wrong when any pair of it has a winner after Holm's correction.
"""

from __future__ import annotations

import numpy as np
from measure import make_parser, report, round_figure

from headstart.evaluation import Evaluation
from headstart.insight.comparison import compare_evaluations
from headstart.stats import wilson_interval


def make_models(rng: np.random.Generator, num_models: int, n: int, accuracy: float) -> dict[str, Evaluation]:
    """Equal models on n pictures of two classes, most of them easy and some hard."""
    chance = rng.beta(2 * accuracy, 2 * (1 - accuracy), n)
    paths = [str(number) for number in range(n)]
    labels = rng.integers(0, 2, n)
    models = {}
    for number in range(num_models):
        guess = np.where(rng.random(n) < chance, labels, 1 - labels)
        sure = rng.uniform(0.5, 1, n).astype(np.float32)
        probs = np.where(guess[:, None] == np.arange(2), sure[:, None], 1 - sure[:, None])
        models[f"model {number}"] = Evaluation(("a", "b"), paths, [""] * n, labels, probs)
    return models


def count_winners(num_models: int, n: int, accuracy: float, num_trials: int, seed: int) -> int:
    """In how many trials any pair has a winner."""
    rng = np.random.default_rng([seed, num_models, n])
    trials = (compare_evaluations(make_models(rng, num_models, n, accuracy)) for _ in range(num_trials))
    return sum(any(pair.better for pair in comparison.pairs) for comparison in trials)


def main() -> None:
    parser = make_parser(__doc__, repeats=None)
    parser.add_argument("--trials", type=int, default=4000, help="trials of each kind (default 4000)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    kinds = []
    for num_models in (2, 5):
        for n, accuracy in ((100, 0.9), (500, 0.8), (1000, 0.95)):
            wrong = count_winners(num_models, n, accuracy, args.trials, args.seed)
            interval = [round_figure(limit) for limit in wilson_interval(wrong, args.trials)]
            kinds.append(
                {
                    "models": num_models,
                    "pictures": n,
                    "accuracy": accuracy,
                    "trials": args.trials,
                    "with_a_winner": wrong,
                    "with_a_winner_frac": wrong / args.trials,
                    "interval": interval,
                }
            )
    report({"kinds": kinds, "worst_frac": max(kind["with_a_winner_frac"] for kind in kinds)})


if __name__ == "__main__":
    main()
