"""Contrastive training with batches whose activations do not fit: the gradient cache."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class GradCache:
    """Gradients of a whole batch through encoders that hold one chunk at a time (Gao et al., 2021, section 3).

    Three passes: embeddings of all chunks without a graph; the loss on all embeddings and its gradient with respect to
    them; every chunk once more, with the random state of its first pass, and backward from the cached gradient. The
    result is the gradient of the whole batch, dropout included, as long as the encoder treats rows independently.
    BatchNorm does not: its statistics would be those of chunks.

    Under ``DistributedDataParallel`` gradients are exchanged with the last chunk only; losses are called as always,
    with ``gather=True`` for the rows of all processes. Parameters of the loss itself (a learned temperature) get their
    gradient in the second pass.

    Args:
        encoders: One encoder for all inputs, or one for each; each maps its input to embeddings ``[n d]``.
        loss: Maps the embeddings, one tensor per input, to a scalar.
        chunk: Rows that pass an encoder at once.
        allow_batch_norm: Accept BatchNorm in training mode, with statistics of chunks; running statistics are updated
            once.
        scaler: Gradient scaler of mixed precision; the loss is scaled once, before the second pass.

    Raises:
        ValueError: ``chunk`` is not positive, or an encoder has BatchNorm in training mode.

    Example:
        >>> import torch
        >>> from contrastive_core.efficient import GradCache
        >>> from contrastive_core.losses import nt_xent
        >>> encoder = torch.nn.Linear(4, 3)
        >>> a, b = torch.randn(2, 8, 4, generator=torch.Generator().manual_seed(0))
        >>> loss = GradCache(encoder, nt_xent, chunk=3).backward(a, b)
        >>> cached = encoder.weight.grad.clone()
        >>> encoder.zero_grad()
        >>> nt_xent(encoder(a), encoder(b)).backward()
        >>> torch.testing.assert_close(cached, encoder.weight.grad)
    """

    def __init__(
        self,
        encoders: nn.Module | Sequence[nn.Module],
        loss: Callable[..., Tensor],
        *,
        chunk: int,
        allow_batch_norm: bool = False,
        scaler: torch.amp.GradScaler | None = None,
    ) -> None:
        if chunk < 1:
            raise ValueError(f"a chunk has at least one row, got {chunk}")
        self.encoders = encoders
        self.loss, self.chunk, self.scaler = loss, chunk, scaler
        self.allow_batch_norm = allow_batch_norm

    def backward(self, *inputs: Any, **loss_arguments: Any) -> Tensor:
        """Add the gradients of one batch to ``.grad`` of the encoders (and of the loss).

        Args:
            inputs: One batch per embedding the loss takes: a tensor, or a dictionary, list or tuple of tensors, with
                the rows in the first dimension. A dictionary is passed to the encoder as keyword arguments, a list or
                tuple as positional ones.
            loss_arguments: Passed to the loss.

        Returns:
            The loss of the batch, without graph.

        Raises:
            ValueError: The numbers of encoders and inputs differ, an input has no rows, or an encoder has BatchNorm in
                training mode.
        """
        encoders = self._encoders(len(inputs))
        self._refuse_batch_norm(encoders)
        chunks = [list(_split(batch, self.chunk)) for batch in inputs]
        embeddings, states = [], []
        for encoder, parts in zip(encoders, chunks, strict=True):
            rows, remembered = self._embed(encoder, parts)
            embeddings.append(rows.requires_grad_())
            states.append(remembered)

        loss = self.loss(*embeddings, **loss_arguments)
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()

        last = len(encoders) - 1
        for i, (encoder, parts) in enumerate(zip(encoders, chunks, strict=True)):
            gradient = embeddings[i].grad
            if gradient is None:  # the loss does not depend on this input
                continue
            # An encoder that serves several inputs exchanges gradients with the last of them.
            later = any(encoders[j] is encoder and embeddings[j].grad is not None for j in range(i + 1, last + 1))
            self._replay(encoder, parts, states[i], gradient.split(self.chunk), exchange=not later)
        return loss.detach()

    def _encoders(self, inputs: int) -> list[nn.Module]:
        if isinstance(self.encoders, nn.Module):
            return [self.encoders] * inputs
        if len(self.encoders) != inputs:
            raise ValueError(f"expected one encoder, or one for each of {inputs} inputs, got {len(self.encoders)}")
        return list(self.encoders)

    def _refuse_batch_norm(self, encoders: Sequence[nn.Module]) -> None:
        if self.allow_batch_norm:
            return
        for encoder in encoders:
            for name, module in encoder.named_modules():
                if isinstance(module, _BatchNorm) and module.training:
                    raise ValueError(
                        f"BatchNorm in training mode ({name or type(module).__name__}) mixes the rows of a chunk, so "
                        "that the gradient would not be that of the batch: put it into eval mode, use another norm, or "
                        "pass allow_batch_norm=True"
                    )

    @torch.no_grad()
    def _embed(self, encoder: nn.Module, parts: list[Any]) -> tuple[Tensor, list["_RandomState"]]:
        rows, states = [], []
        with _frozen_running_statistics(encoder):
            for part in parts:
                states.append(_RandomState(part))
                rows.append(_call(encoder, part))
        return torch.cat(rows), states

    def _replay(
        self,
        encoder: nn.Module,
        parts: list[Any],
        states: list["_RandomState"],
        gradients: Sequence[Tensor],
        exchange: bool,
    ) -> None:
        for i, (part, state, gradient) in enumerate(zip(parts, states, gradients, strict=True)):
            last = exchange and i == len(parts) - 1
            no_sync = getattr(encoder, "no_sync", None)
            with contextlib.nullcontext() if last or no_sync is None else no_sync():
                with state.restored():
                    rows = _call(encoder, part)
                rows.backward(gradient.to(rows.dtype))


class _RandomState:
    """Random state of the processor and of the devices a batch lies on."""

    def __init__(self, batch: Any) -> None:
        self.devices = sorted({t.device.index for t in _tensors(batch) if t.device.type == "cuda"})
        self.cpu = torch.get_rng_state()
        self.cuda = [torch.cuda.get_rng_state(device) for device in self.devices]

    @contextlib.contextmanager
    def restored(self) -> Iterator[None]:
        with torch.random.fork_rng(devices=self.devices):
            torch.set_rng_state(self.cpu)
            for device, state in zip(self.devices, self.cuda, strict=True):
                torch.cuda.set_rng_state(state, device)
            yield


@contextlib.contextmanager
def _frozen_running_statistics(module: nn.Module) -> Iterator[None]:
    """Without this every chunk would enter the running statistics twice."""
    norms = [each for each in module.modules() if isinstance(each, _BatchNorm) and each.training]
    tracked = [norm.track_running_stats for norm in norms]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm, value in zip(norms, tracked, strict=True):
            norm.track_running_stats = value


def _call(encoder: nn.Module, part: Any) -> Tensor:
    if isinstance(part, dict):
        return encoder(**part)
    if isinstance(part, list | tuple):
        return encoder(*part)
    return encoder(part)


def _tensors(batch: Any) -> list[Tensor]:
    if isinstance(batch, Tensor):
        return [batch]
    values = batch.values() if isinstance(batch, dict) else batch
    return [tensor for value in values for tensor in _tensors(value)]


def _split(batch: Any, chunk: int) -> Iterator[Any]:
    counts = {len(tensor) for tensor in _tensors(batch)}
    if len(counts) != 1 or counts == {0}:
        raise ValueError(f"expected tensors of one number of rows, at least 1, got {sorted(counts)}")
    for start in range(0, counts.pop(), chunk):
        yield _slice(batch, slice(start, start + chunk))


def _slice(batch: Any, rows: slice) -> Any:
    if isinstance(batch, Tensor):
        return batch[rows]
    if isinstance(batch, dict):
        return {name: _slice(value, rows) for name, value in batch.items()}
    return type(batch)([_slice(value, rows) for value in batch])
