"""What the tests of samplers share: whether counts and means are what chance allows."""
import math

import numpy as np


def near(value, expected, standard_error, what=""):
    "Within five standard errors, everywhere."
    gap = np.max(np.abs(np.asarray(value, dtype=float) - expected) / np.asarray(standard_error, dtype=float))
    assert gap < 5, f"{what}: {gap:.1f} standard errors off"


def uniform(counts, what=""):
    "A chi-square statistic within five of its standard deviations."
    counts = np.asarray(counts, dtype=float)
    assert len(counts) > 1
    near(((counts - counts.mean())**2 / counts.mean()).sum(), len(counts) - 1, math.sqrt(2 * (len(counts) - 1)), what)
