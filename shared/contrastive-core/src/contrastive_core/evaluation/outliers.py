"""Whether a score tells known inputs from foreign ones."""

import dataclasses

import numpy as np
from jaxtyping import Float


@dataclasses.dataclass(frozen=True)
class OutlierScores:
    """Detection of foreign inputs by a threshold on a score.

    Attributes:
        auroc: Probability that a foreign input scores higher than a known one, ties counting half.
        aupr: Average precision with foreign inputs as the positive class; depends on their share.
        fpr95: Share of known inputs flagged at the threshold that flags at least 95 % of the foreign ones.
    """

    auroc: float
    aupr: float
    fpr95: float


def auroc_fpr95(known: Float[np.ndarray, " n"], foreign: Float[np.ndarray, " m"]) -> OutlierScores:
    """Judge an uncertainty score on known and on foreign inputs.

    Args:
        known: Scores of inputs like the training data.
        foreign: Scores of other inputs; should be higher.

    Raises:
        ValueError: One of the sets is empty, or a score is NaN.

    Example:
        >>> auroc_fpr95(np.array([0.1, 0.2, 0.3]), np.array([0.25, 0.9]))
        OutlierScores(auroc=0.8333333333333334, aupr=0.8333333333333333, fpr95=0.3333333333333333)
    """
    from sklearn.metrics import average_precision_score, roc_auc_score

    scores = np.concatenate([known, foreign])
    if not len(known) or not len(foreign) or np.isnan(scores).any():
        raise ValueError(f"needs scores of both kinds without NaN, got {len(known)} and {len(foreign)}")
    is_foreign = np.arange(len(scores)) >= len(known)
    # The largest threshold at or above which 95 % of the foreign inputs lie.
    threshold = np.sort(foreign)[len(foreign) - int(np.ceil(0.95 * len(foreign)))]
    return OutlierScores(
        auroc=float(roc_auc_score(is_foreign, scores)),
        aupr=float(average_precision_score(is_foreign, scores)),
        fpr95=float((known >= threshold).mean()),
    )
