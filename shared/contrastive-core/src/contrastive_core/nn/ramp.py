"""Ramps of loss weights as plain functions of the step."""

import math


def sigmoid_rampup(x: float | int, length: float | int) -> float:
    """Weight that rises from ``exp(-5)`` to 1 over ``length``: ``exp(-5 (1 - x / length)^2)`` (Laine & Aila, 2017).

    Args:
        x: Where the training stands, in steps or epochs; values outside [0, length] are clipped.
        length: Where the ramp ends; 0 for no ramp.

    Returns:
        The weight, between 0.0067 and 1.

    Raises:
        ValueError: The length is negative.

    Example:
        >>> [round(sigmoid_rampup(epoch, 300), 4) for epoch in (0, 150, 300, 400)]
        [0.0067, 0.2865, 1.0, 1.0]
    """
    if length < 0:
        raise ValueError(f"a ramp cannot have the length {length}")
    if length == 0:
        return 1.0
    rest = 1.0 - min(max(x, 0.0), length) / length
    return math.exp(-5.0 * rest * rest)
