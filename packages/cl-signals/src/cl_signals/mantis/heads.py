"""From the embeddings of a series' channels to its classes."""

import numpy as np
import torch
from contrastive_core.evaluation import fit_probe
from jaxtyping import Float, Int
from torch import Tensor, nn

from cl_signals.mantis.adapters import LinearChannelCombiner
from cl_signals.mantis.model import Mantis, Token


def classification_head(width: int, classes: int) -> nn.Sequential:
    """Batch normalisation and one linear layer, for training by gradients.

    Args:
        width: Length of the embedding of one series, all channels concatenated.
        classes: Number of classes.
    """
    return nn.Sequential(nn.BatchNorm1d(width), nn.Linear(width, classes))


def logistic_head(z: Float[np.ndarray, "n d"], y: Int[np.ndarray, " n"], *, seed: int) -> nn.Sequential:
    """The linear layer that logistic regression on frozen embeddings gives.

    Regularisation is chosen on a fifth of the series (:func:`contrastive_core.evaluation.fit_probe`); standardisation
    is folded into the layer.

    Args:
        z: Embeddings.
        y: Class of every row, 0..K-1, all of which occur.
        seed: Seed of the choice.
    """
    scaler, model = (step for _, step in fit_probe(z, y, kind="logreg", seed=seed).steps)
    weight, bias = model.coef_ / scaler.scale_, model.intercept_
    bias = bias - weight @ scaler.mean_
    if len(weight) == 1:  # two classes share one direction
        weight, bias = np.concatenate([np.zeros_like(weight), weight]), np.array([0.0, bias[0]])
    layer = nn.utils.skip_init(nn.Linear, weight.shape[1], len(weight))  # drawing values would move the generator
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight))
        layer.bias.copy_(torch.from_numpy(bias))
    return nn.Sequential(layer)


class SeriesNetwork(nn.Module):
    """Series in, class logits out.

    Args:
        encoder: Encodes each channel on its own.
        head: Maps the concatenated channel embeddings to logits.
        combiner: Trainable mixture of channels before the encoder.
        layer: Encoder layer read out.
        token: Token read out.
    """

    def __init__(
        self, encoder: Mantis, head: nn.Module, combiner: LinearChannelCombiner | None, *, layer: int, token: Token
    ) -> None:
        super().__init__()
        self.encoder, self.head, self.combiner = encoder, head, combiner
        self.layer = layer
        self.token: Token = token

    def forward(self, x: Float[Tensor, "b c t"]) -> Float[Tensor, "b k"]:
        """Logits of a batch of series."""
        if self.combiner is not None:
            x = self.combiner(x)
        batch, channels, length = x.shape
        z = self.encoder(x.reshape(batch * channels, 1, length), layer=self.layer, token=self.token)
        return self.head(z.reshape(batch, -1))
