"""Learning-rate schedules as plain functions of the step."""

import math


def warmup_cosine(step: int, total: int, warmup: int, base: float = 1.0, final: float = 0.0) -> float:
    """Linear warm-up from zero, then half a cosine from ``base`` to ``final``.

    Args:
        step: Current step, 0 to ``total``.
        total: Steps of the whole run.
        warmup: Steps of warm-up; 0 for none.
        base: Value at the end of the warm-up.
        final: Value at ``total``.

    Example:
        >>> [round(warmup_cosine(step, 10, 2), 3) for step in (0, 1, 2, 6, 10)]
        [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    if step < warmup:
        return base * step / warmup
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return final + (base - final) * 0.5 * (1 + math.cos(math.pi * progress))
