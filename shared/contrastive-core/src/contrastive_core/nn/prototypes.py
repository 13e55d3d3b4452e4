"""Several prototypes a class: finding them by soft k-means, classifying with them, fusing two sets of them."""

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Assignment = Literal["sharp", "l2"]
Gradient = Literal["iterations", "means"]
Match = Literal["index", "key", "hungarian"]
Reduce = Literal["max", "mean", "logsumexp"]


def soft_kmeans(
    x: Float[Tensor, "n d"],
    init: Float[Tensor, "k d"],
    *,
    iters: int = 10,
    assignment: Assignment = "sharp",
    beta: float | int = 10.0,
    power: float | int = 1.0,
    temperature: float | int = 1.0,
    extra: Float[Tensor, "n e"] | None = None,
    init_extra: Float[Tensor, "k e"] | None = None,
    extra_weight: float | int = 0.0,
    gradient: Gradient = "iterations",
    chunk: int = 65_536,
) -> tuple[Float[Tensor, "k d"], Float[Tensor, "n k"]]:
    r"""Soft k-means with a fixed number of iterations, differentiable.

    Each iteration computes ``D = ||x - c||_2 + extra_weight ||e - q||_2``, the assignment A (rows sum to 1), and moves
    the centres to ``A^T x / A^T 1``. Assignments are

    - ``sharp``: ``softmax_k(-beta D / mean(D))``, the mean without gradient. Scale-free; keeps centres apart.
    - ``l2``: ``softmax_k(-D^power / temperature)``. Flat where the temperature is high or the power is low against the
      distances: the centres then all move to the mean.

    No ``[n k d]`` array is made. Beyond ``chunk`` rows the assignment of each block is recomputed in backward.

    The gradient through many sharp iterations can grow with each of them: where it is not wanted for itself, let it end
    at the means.

    Args:
        x: Rows to cluster, in float32 or wider (half precision is widened).
        init: Starting centres.
        iters: Iterations, at least 1.
        assignment: How distances become weights.
        beta: Sharpness of ``sharp``, positive.
        power: Exponent of ``l2``, positive.
        temperature: Temperature of ``l2``, positive.
        extra: Further coordinates of the rows, such as places in an image. They have centres of their own, which
            follow the same assignment.
        init_extra: Starting centres of ``extra``.
        extra_weight: Weight of the distance between them.
        gradient: ``iterations`` differentiates through all of them, ``init`` included; ``means`` takes the last
            assignment as a constant, so that a centre is the weighted mean of its rows. Centres are the same.
        chunk: Rows worked on at once.

    Returns:
        The centres after the last iteration, and the assignment that made them.

    Raises:
        ValueError: No rows, no centres, an option out of range, or ``extra`` without ``init_extra``.

    Example:
        >>> x = torch.tensor([[0.0], [0.1], [1.0], [1.1]])
        >>> centers, _ = soft_kmeans(x, x[[0, 2]], iters=5)
        >>> [round(value, 2) for value in centers[:, 0].tolist()]
        [0.05, 1.05]
    """
    _check_kmeans(x, init, iters, beta, power, temperature, extra, init_extra, chunk)
    if gradient not in get_args(Gradient):
        raise ValueError(f"gradient is one of {', '.join(get_args(Gradient))}, got {gradient}")
    wide = torch.promote_types(x.dtype, torch.float32)
    with torch.autocast(x.device.type, enabled=False):
        rows, centers = x.to(wide), init.to(wide)
        # Distances do not depend on the origin; near it, |x|^2 - 2xc + |c|^2 loses no digits.
        origin = rows.detach().mean(0)
        state, parts, weights = [centers - origin], [rows - origin], [1.0]
        if extra is not None and init_extra is not None:
            state.append(init_extra.to(wide))
            parts.append(extra.to(wide))
            weights.append(float(extra_weight))
        # Blocks made by split: their gradients are joined once, not padded to all rows in every iteration.
        blocks = list(zip(*(part.split(chunk) for part in parts), strict=True))
        shape = (assignment, beta, power, temperature)
        assigned: list[Tensor] = []
        with torch.set_grad_enabled(torch.is_grad_enabled() and gradient == "iterations"):
            for _ in range(iters if len(init) > 1 else 1):
                state, assigned = _iterate(blocks, state, weights, shape)
        if gradient == "means":
            sums = [(each.sum(0), each.T @ block[0]) for each, block in zip(assigned, blocks, strict=True)]
            mass, moment = (torch.stack(column).sum(0) for column in zip(*sums, strict=True))
            state[0] = torch.where(mass[:, None] < 1e-12, state[0], moment / mass.clamp_min(1e-12)[:, None])
        return (state[0] + origin).to(x.dtype), torch.cat(assigned).to(x.dtype)


def _iterate(
    blocks: list[tuple[Tensor, ...]],
    state: list[Tensor],
    weights: list[float],
    shape: tuple[Assignment, float, float, float],
) -> tuple[list[Tensor], list[Tensor]]:
    """One iteration over all blocks: new centres, and the assignment of every block."""
    scale = _mean_distance(blocks, state, weights) if shape[0] == "sharp" and len(blocks) > 1 else None

    def step(*tensors: Tensor) -> tuple[Tensor, ...]:
        rows, centers = tensors[: len(state)], tensors[len(state) :]
        assigned = _assign(_distance(rows, centers, weights), shape, scale)
        return assigned, assigned.sum(0), *(assigned.T @ each for each in rows)

    assigned, sums = [], []
    for block in blocks:
        if len(blocks) > 1 and torch.is_grad_enabled():
            outcome = checkpoint(step, *block, *state, use_reentrant=False)
        else:
            outcome = step(*block, *state)
        assigned.append(outcome[0])
        sums.append(outcome[1:])
    mass, *moments = (torch.stack(column).sum(0) for column in zip(*sums, strict=True))
    # A centre nobody is assigned to stays where it is.
    empty = mass[:, None] < 1e-12
    safe = mass.clamp_min(1e-12)[:, None]
    return [torch.where(empty, old, moment / safe) for old, moment in zip(state, moments, strict=True)], assigned


@torch.no_grad()
def _mean_distance(blocks: list[tuple[Tensor, ...]], state: list[Tensor], weights: list[float]) -> Float[Tensor, ""]:
    total, count = state[0].new_zeros(()), 0
    for block in blocks:
        distance = _distance(block, state, weights)
        total, count = total + distance.sum(), count + distance.numel()
    return total / count


def _distance(
    rows: list[Tensor] | tuple[Tensor, ...], centers: list[Tensor] | tuple[Tensor, ...], weights: list[float]
) -> Float[Tensor, "n k"]:
    parts = [weight * _euclidean(x, c) for x, c, weight in zip(rows, centers, weights, strict=True) if weight != 0]
    return torch.stack(parts).sum(0) if len(parts) > 1 else parts[0]


def _euclidean(x: Float[Tensor, "n d"], centers: Float[Tensor, "k d"]) -> Float[Tensor, "n k"]:
    squared = torch.addmm(x.square().sum(1, keepdim=True) + centers.square().sum(1), x, centers.T, alpha=-2)
    # The root of zero has an infinite slope.
    return (squared.clamp_min(0) + 1e-12).sqrt()


def _assign(
    distance: Float[Tensor, "n k"], shape: tuple[Assignment, float, float, float], scale: Tensor | None
) -> Float[Tensor, "n k"]:
    kind, beta, power, temperature = shape
    if kind == "sharp":
        scale = distance.detach().mean() if scale is None else scale
        return torch.softmax(-beta * distance / scale.clamp_min(1e-12), 1)
    return torch.softmax(-(distance if power == 1 else distance.pow(power)) / temperature, 1)


def _check_kmeans(
    x: Tensor,
    init: Tensor,
    iters: int,
    beta: float,
    power: float,
    temperature: float,
    extra: Tensor | None,
    init_extra: Tensor | None,
    chunk: int,
) -> None:
    if len(x) == 0 or len(init) == 0:
        raise ValueError(f"soft k-means needs rows and centres, got {len(x)} and {len(init)}")
    if iters < 1 or chunk < 1:
        raise ValueError(f"iters and chunk are at least 1, got {iters} and {chunk}")
    if not (beta > 0 and power > 0 and temperature > 0):
        raise ValueError(f"beta, power and temperature are positive, got {beta}, {power}, {temperature}")
    if (extra is None) != (init_extra is None):
        raise ValueError("extra and init_extra come together")


def multi_prototype_logits(
    feats: Float[Tensor, "n d"],
    protos: Float[Tensor, "c k d"],
    *,
    scale: float | int | Float[Tensor, ""] = 1.0,
    reduce: Reduce = "max",
) -> Float[Tensor, "n c"]:
    """Logits of a cosine classifier with several prototypes a class.

    Args:
        feats: Features, any norm (norms below 1e-8 count as 1e-8).
        protos: Prototypes, any norm.
        scale: Factor on the cosines.
        reduce: ``max`` over a class's prototypes, their ``mean``, or ``logsumexp`` minus log k (a soft maximum). All
            three stay the same when every prototype is repeated.

    Returns:
        ``scale`` times the cosines, reduced over the prototypes.

    Example:
        >>> protos = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[-1.0, 0.0], [0.0, -1.0]]])
        >>> multi_prototype_logits(torch.tensor([[0.0, 3.0]]), protos)
        tensor([[1., 0.]])
    """
    unit = F.normalize(feats, dim=1, eps=1e-8)
    cosine = unit @ F.normalize(protos.flatten(0, 1), dim=1, eps=1e-8).T
    logits = scale * cosine.unflatten(1, tuple(protos.shape[:2]))
    if reduce == "max":
        return logits.amax(2)
    if reduce == "mean":
        return logits.mean(2)
    if reduce == "logsumexp":
        return logits.logsumexp(2) - torch.tensor(float(protos.shape[1])).log().to(logits)
    raise ValueError(f"reduce is max, mean or logsumexp, got {reduce!r}")


def match_prototypes(
    a: Float[Tensor, "c k d"],
    b: Float[Tensor, "c k d"],
    *,
    match: Match = "index",
    key_a: Float[Tensor, "c k"] | None = None,
    key_b: Float[Tensor, "c k"] | None = None,
) -> Int[Tensor, "c k"]:
    """For each prototype of ``a`` the index of its partner in ``b``, within the class.

    Args:
        a: Prototypes.
        b: Prototypes of the same classes.
        match: By ``index``; by the rank of a ``key``, such as the mean intensity; or ``hungarian``, the pairing
            with the largest sum of cosines.
        key_a: Keys of ``a``, for ``match="key"``.
        key_b: Keys of ``b``.

    Raises:
        ValueError: Unknown ``match``, or ``key`` without both keys.
    """
    classes, k, _ = a.shape
    if match == "index":
        return torch.arange(k, device=a.device).expand(classes, k)
    if match == "key":
        if key_a is None or key_b is None:
            raise ValueError('match="key" needs key_a and key_b')
        rank = key_a.argsort(dim=1, stable=True).argsort(dim=1)
        return key_b.argsort(dim=1, stable=True).gather(1, rank)
    if match == "hungarian":
        cosine = F.normalize(a.detach(), dim=2) @ F.normalize(b.detach(), dim=2).transpose(1, 2)
        pairs = [linear_sum_assignment(each, maximize=True)[1] for each in cosine.double().cpu().numpy()]
        return torch.stack([torch.from_numpy(each) for each in pairs]).to(a.device)
    raise ValueError(f"match is index, key or hungarian, got {match!r}")


def fuse_prototypes(
    a: Float[Tensor, "c k d"],
    b: Float[Tensor, "c k d"],
    w: float | int | Float[Tensor, ""],
    *,
    match: Match = "index",
    key_a: Float[Tensor, "c k"] | None = None,
    key_b: Float[Tensor, "c k"] | None = None,
    present_a: Bool[Tensor, " c"] | None = None,
    present_b: Bool[Tensor, " c"] | None = None,
) -> Float[Tensor, "c k d"]:
    """Weighted mean of two sets of prototypes, ``(a + w b) / (1 + w)``, in the order of ``a``.

    Args:
        a: Prototypes, for instance of labelled images.
        b: Prototypes of the same classes, for instance of unlabelled images.
        w: Weight of ``b``, at least 0.
        match: Which prototype of ``b`` belongs to which of ``a``, see :func:`match_prototypes`.
        key_a: Keys of ``a``, for ``match="key"``.
        key_b: Keys of ``b``.
        present_a: Classes ``a`` holds (all by default). A class that only one source holds is taken from it, in the
            order of that source; one that neither holds is zero.
        present_b: Classes ``b`` holds.

    Raises:
        ValueError: As :func:`match_prototypes`.
    """
    partner = match_prototypes(a, b, match=match, key_a=key_a, key_b=key_b)
    everywhere = torch.ones(len(a), dtype=torch.bool, device=a.device)
    in_a = everywhere if present_a is None else present_a
    in_b = everywhere if present_b is None else present_b
    only_b = in_b & ~in_a
    matched = b.gather(1, partner[..., None].expand_as(b))
    matched = torch.where(only_b[:, None, None], b, matched)
    weight = torch.as_tensor(w, dtype=a.dtype, device=a.device)
    ours = in_a.to(a.dtype)
    theirs = torch.where(in_b, torch.where(in_a, weight, torch.ones_like(weight)), torch.zeros_like(weight))
    total = (ours + theirs).clamp_min(torch.finfo(a.dtype).tiny)
    return (ours / total)[:, None, None] * a + (theirs / total)[:, None, None] * matched


def entropy_reliability(
    prob: Float[Tensor, "b c *where"], mode: Literal["sum", "log_c"] = "log_c"
) -> Float[Tensor, "b *where"]:
    """How far each prediction can be trusted, from the entropy H of its class probabilities.

    Args:
        prob: Probabilities, class axis second.
        mode: ``log_c``: ``1 - H / log C``, from 0 (uniform) to 1 (certain). ``sum``: ``1 - H / sum H``, the sum over
            all positions of one image (over all rows where there are no positions); with many positions it is close
            to 1 everywhere.

    Raises:
        ValueError: Unknown mode, or ``log_c`` with one class.

    Example:
        >>> entropy_reliability(torch.tensor([[0.5, 0.5], [1.0, 0.0]]))
        tensor([0., 1.])
    """
    entropy = -torch.xlogy(prob, prob).sum(1)
    if mode == "log_c":
        if prob.shape[1] < 2:
            raise ValueError("the entropy of one class is always 0: two classes are needed")
        return (1 - entropy / torch.tensor(float(prob.shape[1])).log().to(entropy)).clamp(0, 1)
    if mode == "sum":
        total = entropy.flatten(1).sum(1) if prob.ndim > 2 else entropy.sum()
        total = total.reshape(-1, *[1] * (prob.ndim - 2)) if prob.ndim > 2 else total
        return 1 - torch.where(total > 0, entropy / total.clamp_min(torch.finfo(prob.dtype).tiny), 0.0)
    raise ValueError(f"mode is sum or log_c, got {mode!r}")
