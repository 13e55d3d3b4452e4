"""What the speeds of GNAH and APKH share: the dense contrast that a training step is raced against."""

import torch
from torch import Tensor


def pairwise_contrast(
    hx: Tensor, hy: Tensor, positive_of_x: Tensor, positive_of_y: Tensor, temperature: float
) -> Tensor:
    """The equations of the contrast taken pair by pair, as they are printed; a reference for speed."""
    total = hx.new_zeros(())
    for anchor, positive, other in ((hx, positive_of_x, hy), (hy, positive_of_y, hx)):
        for i in range(len(anchor)):
            numerator = torch.exp(anchor[i] @ positive[i] / temperature)
            denominator = numerator
            for j in range(len(anchor)):
                if j != i:
                    denominator = denominator + torch.exp(anchor[i] @ anchor[j] / temperature)
                    denominator = denominator + torch.exp(anchor[i] @ other[j] / temperature)
            total = total - torch.log(numerator / denominator)
    return total / len(hx)
