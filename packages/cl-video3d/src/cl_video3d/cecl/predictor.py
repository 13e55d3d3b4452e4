"""From an embedding to a cluster and a rate-quality curve: what a new video gets without a trial encode."""

import dataclasses

import numpy as np
from contrastive_core.errors import InputError
from contrastive_core.evaluation import fit_probe
from jaxtyping import Float, Int
from sklearn.linear_model import RidgeCV
from sklearn.preprocessing import StandardScaler

ALPHAS = np.logspace(-1, 4, 11)


@dataclasses.dataclass(frozen=True)
class Predictor:
    """Linear maps on standardised embeddings.

    Attributes:
        mean: Mean of the training embeddings.
        scale: Their standard deviation.
        weights: Of the multinomial logistic regression, one row a cluster.
        bias: Likewise.
        classes: Cluster of each row.
        curve_weights: Of the ridge regression to ``[log2 bpp, PSNR / 6]`` at the operating points.
        curve_bias: Likewise.
        reach: Mean square of a standardised embedding that one in a hundred training clips exceeds.
    """

    mean: Float[np.ndarray, " d"]
    scale: Float[np.ndarray, " d"]
    weights: Float[np.ndarray, "k d"]
    bias: Float[np.ndarray, " k"]
    classes: Int[np.ndarray, " k"]
    curve_weights: Float[np.ndarray, "e d"]
    curve_bias: Float[np.ndarray, " e"]
    reach: float

    def standardised(self, z: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
        """Embeddings by the statistics of training.

        Raises:
            InputError: They are of another width.
        """
        if z.shape[1] != len(self.mean):
            raise InputError(
                "the embeddings are of another model",
                where="z",
                why=f"width {z.shape[1]}, the clusters were made with {len(self.mean)}",
            )
        return (z.astype(np.float64) - self.mean) / self.scale

    def probabilities(self, z: Float[np.ndarray, "n d"], clusters: int) -> Float[np.ndarray, "n k"]:
        """Probability of each cluster, 0 for clusters training never saw."""
        logits = self.standardised(z) @ self.weights.T + self.bias
        odds = np.exp(logits - logits.max(1, keepdims=True))
        out = np.zeros((len(z), clusters))
        out[:, self.classes] = odds / odds.sum(1, keepdims=True)
        return out

    def curves(self, z: Float[np.ndarray, "n d"]) -> tuple[Float[np.ndarray, "n c"], Float[np.ndarray, "n c"]]:
        """Predicted ``log2 bpp`` and PSNR at the operating points."""
        rate, quality = np.split(self.standardised(z) @ self.curve_weights.T + self.curve_bias, 2, axis=1)
        return rate, 6 * quality

    def is_new(self, z: Float[np.ndarray, "n d"]) -> bool:
        """Whether half of the clips lie farther out than one in a hundred of those of training."""
        return bool(np.median(np.square(self.standardised(z)).mean(1)) > self.reach)


def fit_predictor(
    z: Float[np.ndarray, "n d"],
    labels: Int[np.ndarray, " n"],
    log_rate: Float[np.ndarray, "n c"],
    quality: Float[np.ndarray, "n c"],
) -> Predictor:
    """Fit a logistic regression (C = 0.1) to the clusters and a ridge regression to the curves.

    Args:
        z: Embeddings of training clips.
        labels: Their clusters, of two kinds at least.
        log_rate: Their ``log2 bpp`` at the operating points.
        quality: Their PSNR.
    """
    scaler = StandardScaler().fit(z.astype(np.float64))
    x = scaler.transform(z.astype(np.float64))
    probe = fit_probe(x, labels, kind="logreg", strength=0.1, scale=False).steps[-1][1]
    weights, bias = probe.coef_, probe.intercept_
    if len(weights) == 1:  # two classes have one row in scikit-learn
        weights, bias = np.concatenate([-weights, weights]) / 2, np.concatenate([-bias, bias]) / 2
    ridge = RidgeCV(ALPHAS).fit(x, np.concatenate([log_rate, quality / 6], axis=1))
    return Predictor(
        scaler.mean_,
        scaler.scale_,
        weights,
        bias,
        np.asarray(probe.classes_, dtype=np.int64),
        ridge.coef_,
        ridge.intercept_,
        float(np.quantile(np.square(x).mean(1), 0.99)),
    )
