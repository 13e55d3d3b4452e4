"""The kernel's terms by ordinary operations: what transforms, compilers and derivatives of any order see.

The values are those of :mod:`contrastive_core.losses.similarity`. :func:`dense_terms` makes the whole matrix of
similarities; :func:`gradient` goes tile by tile and keeps none of them, also when it is differentiated once more.
"""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from contrastive_core.losses.kernel import EPSILON, Pairs, Terms, for_backward
from contrastive_core.losses.products import TILE


def unit_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Unit rows and one over their norms ``[n 1]``; zero for a row of norm zero, which gets no gradient."""
    dead = torch.linalg.vector_norm(x.detach(), dim=1, keepdim=True) < EPSILON
    norm = torch.linalg.vector_norm(torch.where(dead, 1.0, x), dim=1, keepdim=True)
    inverse = torch.where(dead, 0.0, 1 / norm)
    return x * inverse, inverse


def dense_terms(
    left: Tensor, right: Tensor, scale: Tensor | float, pairs: Pairs, *, normalise: bool, columns: bool, half: bool
) -> Terms:
    """Log-sum-exp of rows, of columns where asked for, and the similarities of partners."""
    u = unit_rows(left)[0] if normalise else left
    v = u if pairs.same else (unit_rows(right)[0] if normalise else right)
    s = (u.bfloat16() @ v.bfloat16().T).to(u) * scale if half else u @ v.T * scale
    mask = pairs.left_out(s, len(left))
    rows = _logsumexp(s, mask, 1)
    cols = _logsumexp(s, mask, 0) if columns else None
    if not pairs.partner:
        return rows, cols, None
    partners = torch.cat([v[len(v) // 2 :], v[: len(v) // 2]]) if pairs.same else v
    return rows, cols, (u * partners).sum(1) * scale


def gradient(
    left: Tensor,
    right: Tensor,
    scale: Tensor | float,
    pairs: Pairs,
    rows: tuple[Tensor, Tensor],
    columns: tuple[Tensor, Tensor] | None,
    partners: Tensor | None,
    *,
    normalise: bool,
    tile: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient with respect to left, right and scale, as a function that can be differentiated.

    Args:
        left: Rows.
        right: Columns; the same tensor where ``pairs.same``, whose whole gradient is that of ``left``.
        scale: Factor on similarities.
        pairs: Which pairs enter.
        rows: Log-sum-exp of rows, and the gradient of the loss with respect to it.
        columns: The same of columns.
        partners: Gradient of the loss with respect to the similarities of partners.
        normalise: Rows are brought to unit length first.
        tile: Side of a tile, chosen from the problem when absent.
    """
    u, inverse_u = unit_rows(left) if normalise else (left, None)
    v, inverse_v = (u, inverse_u) if pairs.same else (unit_rows(right) if normalise else (right, None))
    columns = rows if pairs.same else columns
    side = tile or (TILE if len(u) * len(v) > TILE * TILE else max(len(u), len(v), 1))
    to_u, to_v = [], [torch.zeros_like(each) for each in v.split(side)]
    for i, block in enumerate(u.split(side)):
        total = torch.zeros_like(block)
        for j, other in enumerate(v.split(side)):
            a, b = slice(i * side, i * side + len(block)), slice(j * side, j * side + len(other))
            of_columns = None if columns is None else (columns[0][b], columns[1][b])
            of_rows = (rows[0][a], rows[1][a])
            # Recomputed where it is differentiated, so that no tile outlives its turn.
            arguments = (block, other, scale, pairs, len(u), a.start, b.start, of_rows, of_columns)
            add_u, add_v = checkpoint(_tile, *arguments, use_reentrant=False, preserve_rng_state=False)
            total, to_v[j] = total + add_u, to_v[j] + add_v
        to_u.append(total)
    grad_u, grad_v = torch.cat(to_u), torch.cat(to_v)
    if partners is not None and pairs.same:
        first, second = u.chunk(2)
        weight = (partners[: len(first)] + partners[len(first) :])[:, None]
        grad_u = grad_u + torch.cat([weight * second, weight * first])
    elif partners is not None:
        grad_u, grad_v = grad_u + partners[:, None] * v, grad_v + partners[:, None] * u
    along = (grad_u * u).sum(1, keepdim=True)
    grad_scale = along.sum() / (2 if pairs.same else 1)  # there every pair was counted from both of its ends
    if inverse_u is not None and inverse_v is not None:
        grad_u = (grad_u - u * along) * inverse_u
        grad_v = (grad_v - v * (grad_v * v).sum(1, keepdim=True)) * inverse_v
    return grad_u * scale, grad_v * scale, grad_scale


def _tile(
    u: Tensor,
    v: Tensor,
    scale: Tensor | float,
    pairs: Pairs,
    count: int,
    a: int,
    b: int,
    rows: tuple[Tensor, Tensor],
    columns: tuple[Tensor, Tensor] | None,
) -> tuple[Tensor, Tensor]:
    """What one tile adds to the gradients of both sides, before scaling."""
    s = u @ v.T * scale
    s = s.masked_fill(pairs.left_out(s, count, a, b), float("-inf"))
    w = (s - for_backward(rows[0])[:, None]).exp() * rows[1][:, None]
    if columns is not None:
        w = w + (s - for_backward(columns[0])[None]).exp() * columns[1][None]
    return w @ v, w.T @ u


def _logsumexp(s: Tensor, mask: Tensor, dim: int) -> Tensor:
    """Minus infinity, with a gradient of zero, where everything is left out."""
    nothing = mask.all(dim, keepdim=True)
    out = s.masked_fill(mask & ~nothing, float("-inf")).logsumexp(dim)
    return out.masked_fill(nothing.squeeze(dim), float("-inf"))
