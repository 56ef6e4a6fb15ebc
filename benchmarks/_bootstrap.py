"""Bootstrap intervals over problems: one set of draws, so that differences and ratios are paired."""

import numpy as np

RESAMPLES = 1_000
SEED = 7


class Bootstrap:
    """Draws of `problems` problems with replacement; the first draw is the sample itself."""

    def __init__(self, problems: int, resamples: int = RESAMPLES, seed: int = SEED) -> None:
        even = np.full(problems, 1 / problems)
        drawn = np.random.default_rng(seed).multinomial(problems, even, size=resamples)
        self._weights = np.vstack([np.ones(problems), drawn]) / problems

    def means(self, values: np.ndarray) -> np.ndarray:
        """The mean over the problems (rows) in each draw."""
        return self._weights @ values


def interval(draws: np.ndarray) -> list[float]:
    """The 95 % percentile interval of what was computed of each draw."""
    low, high = np.percentile(draws[1:], [2.5, 97.5])
    return [float(f"{low:.4g}"), float(f"{high:.4g}")]
