"""A teacher that follows its student as an exponential moving average."""

import copy
import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

Buffers = Literal["copy", "ema", "own"]

_HALF = (torch.float16, torch.bfloat16)


class EMATeacher(nn.Module):
    """Moving average of a network's weights, ``θ' <- m θ' + (1 - m) θ`` (Tarvainen & Valpola, 2017; MoCo; BYOL).

    The teacher is a copy without gradient, called like the network itself. Its count of updates stands in
    ``state_dict`` beside it. Weights held in half precision are averaged in a float32 master copy: ``(1 - m) θ`` is
    mostly below their resolution.

    Args:
        model: The student; copied.
        momentum: m, from 0 (copy the student at every update) to 1 (never move).
        warm: Use ``min(1 - 1 / (t + 1), m)`` at update t = 0, 1, ...: the first update copies the student.
        total_steps: Let m rise over so many updates to ``final`` along half a cosine,
            ``final - (final - momentum) (cos(π t / total_steps) + 1) / 2``. Absent: m is constant.
        final: Where the rise ends.
        buffers: What happens to buffers such as the statistics of batch normalisation: ``copy`` the student's,
            average them as weights (``ema``; integers are copied), or leave the teacher its ``own``, which it gathers
            when it runs in train mode.

    Raises:
        ValueError: A momentum outside [0, 1], or ``total_steps`` below 1.

    Example:
        >>> student = nn.Linear(1, 1, bias=False)
        >>> teacher = EMATeacher(student, momentum=0.9)
        >>> before = student.weight.item()
        >>> with torch.no_grad():
        ...     _ = student.weight.add_(1.0)
        >>> teacher.update(student)
        >>> round(teacher.module.weight.item() - before, 4)
        0.1
    """

    updates: Tensor

    def __init__(
        self,
        model: nn.Module,
        momentum: float | int = 0.99,
        *,
        warm: bool = False,
        total_steps: int | None = None,
        final: float | int = 1.0,
        buffers: Buffers = "copy",
    ) -> None:
        super().__init__()
        if not (0 <= momentum <= 1 and 0 <= final <= 1):
            raise ValueError(f"a momentum lies in [0, 1], got {momentum} and {final}")
        if total_steps is not None and total_steps < 1:
            raise ValueError(f"total_steps is at least 1, got {total_steps}")
        if buffers not in ("copy", "ema", "own"):
            raise ValueError(f"buffers is copy, ema or own, got {buffers!r}")
        self.module = copy.deepcopy(model).requires_grad_(False)
        self.momentum, self.final = float(momentum), float(final)
        self.warm, self.total_steps = warm, total_steps
        self.buffer_mode: Buffers = buffers
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))
        self._keep_masters(dict(self.module.named_parameters()))

    def momentum_at(self, step: int) -> float:
        """M of update ``step``, counted from 0."""
        value = self.momentum
        if self.total_steps is not None:
            progress = min(step / self.total_steps, 1.0)
            value = self.final - (self.final - self.momentum) * (math.cos(math.pi * progress) + 1) / 2
        return min(1 - 1 / (step + 1), value) if self.warm else value

    @torch.no_grad()
    def update(self, student: nn.Module, step: int | None = None) -> None:
        """Move towards the student; call after every optimiser step.

        Args:
            student: The network the teacher was made from, with its present weights.
            step: Number of the update, counted from 0; by default the teacher counts.

        Raises:
            ValueError: The student's weights have other shapes.
        """
        weight = 1 - self.momentum_at(int(self.updates) if step is None else step)
        names, mine = zip(*self.module.named_parameters(), strict=True)
        theirs = _same_shapes(mine, tuple(student.parameters()))
        masters = self._masters()
        goal = [masters.get(name, parameter) for name, parameter in zip(names, mine, strict=True)]
        _lerp(goal, theirs, weight)
        for name, parameter in zip(names, mine, strict=True):
            if name in masters:
                parameter.copy_(masters[name])
        if self.buffer_mode != "own":
            self._update_buffers(student, weight)
        self.updates.fill_((int(self.updates) if step is None else step) + 1)

    def _update_buffers(self, student: nn.Module, weight: float) -> None:
        mine = tuple(self.module.buffers())
        theirs = _same_shapes(mine, tuple(student.buffers()))
        averaged = [self.buffer_mode == "ema" and buffer.is_floating_point() for buffer in mine]
        _lerp(
            [buffer for buffer, yes in zip(mine, averaged, strict=True) if yes],
            [buffer for buffer, yes in zip(theirs, averaged, strict=True) if yes],
            weight,
        )
        for buffer, other, yes in zip(mine, theirs, averaged, strict=True):
            if not yes:
                buffer.copy_(other)

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The teacher's output, without gradient."""
        return self.module(*args, **kwargs)

    def _masters(self) -> dict[str, Tensor]:
        """Float32 copies of the weights in half precision, by the weights' names."""
        prefix = "master_"
        found = {name: buffer for name, buffer in self.named_buffers(recurse=False) if name.startswith(prefix)}
        return {name: found[key] for name, _ in self.module.named_parameters() if (key := _master(name)) in found}

    def _keep_masters(self, values: dict[str, Tensor]) -> None:
        """Have a master for each weight in half precision, starting from the widest values known."""
        for name, parameter in self.module.named_parameters():
            key = _master(name)
            if parameter.dtype in _HALF:
                value = values[name].detach().to(device=parameter.device, dtype=torch.float32, copy=True)
                self.register_buffer(key, value)
            elif key in self._buffers:
                del self._buffers[key]
                parameter.data.copy_(values[name])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "EMATeacher":
        """Move or convert; masters stay in float32."""
        widest = {name: parameter.detach() for name, parameter in self.module.named_parameters()} | self._masters()
        super()._apply(fn, recurse)
        self._keep_masters(widest)
        return self


def _master(name: str) -> str:
    return "master_" + name.replace(".", "__")


def _lerp(start: list[Tensor], end: list[Tensor], weight: float) -> None:
    if start:
        torch._foreach_lerp_(start, [b.to(a) for a, b in zip(start, end, strict=True)], weight)


def _same_shapes(mine: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> list[Tensor]:
    if [each.shape for each in mine] != [each.shape for each in theirs]:
        raise ValueError("the student is not the network the teacher was copied from: weights or buffers differ")
    return list(theirs)
