"""The gradient cache against the whole batch."""

import pytest
import torch
from contrastive_core.efficient import GradCache
from contrastive_core.losses import CLIPLoss, nt_xent
from torch import nn


def encoder(seed=0, norm=nn.LayerNorm, dropout=0.0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), norm(8), nn.GELU(), nn.Dropout(dropout), nn.Linear(8, 4)).double()


def batch(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def gradients(*modules):
    return [parameter.grad.clone() for module in modules for parameter in module.parameters()]


@pytest.mark.parametrize("chunk", [1, 3, 10, 64])
def test_two_encoders_and_a_learned_scale_equal_the_whole_batch(chunk):
    image, text, loss = encoder(0), encoder(1), CLIPLoss().double()
    a, b = batch(10, 6), batch(10, 6, seed=1)
    value = GradCache([image, text], loss, chunk=chunk).backward(a, b)
    cached = gradients(image, text, loss)
    for module in (image, text, loss):
        module.zero_grad()
    reference = loss(image(a), text(b))
    reference.backward()
    torch.testing.assert_close(value, reference.detach())
    for ours, theirs in zip(cached, gradients(image, text, loss), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-10)


class Masked(nn.Module):
    """Dropout whose masks are remembered, so that a whole batch can be run with the same ones."""

    def __init__(self):
        super().__init__()
        self.masks, self.fixed = [], None

    def forward(self, x):
        if self.fixed is not None:
            return x * self.fixed
        self.masks.append((torch.rand_like(x) > 0.4).to(x))
        return x * self.masks[-1]


def test_dropout_is_drawn_alike_in_both_passes_and_the_generator_moves_once():
    net, masked = encoder(), Masked()
    model = nn.Sequential(net, masked)
    a, b = batch(9, 6), batch(9, 6, seed=1)
    torch.manual_seed(3)
    GradCache(model, nt_xent, chunk=4).backward(a, b)
    state = torch.get_rng_state()
    cached, masks = gradients(net), masked.masks
    assert len(masks) == 12
    for first, second in zip(masks[:6], masks[6:], strict=True):
        assert torch.equal(first, second)
    torch.manual_seed(3)
    for mask in masks[:6]:
        torch.rand_like(mask)
    assert torch.equal(state, torch.get_rng_state())

    net.zero_grad()
    masked.fixed = torch.cat(masks[:6])
    za, zb = model(torch.cat([a, b])).chunk(2)
    nt_xent(za, zb).backward()
    for ours, theirs in zip(cached, gradients(net), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-10)


def test_batch_norm_is_refused_unless_allowed_and_then_counts_every_chunk_once():
    net = encoder(norm=nn.BatchNorm1d)
    a, b = batch(8, 6), batch(8, 6, seed=1)
    with pytest.raises(ValueError, match="BatchNorm"):
        GradCache(net, nt_xent, chunk=4).backward(a, b)
    assert all(parameter.grad is None for parameter in net.parameters())
    GradCache(net, nt_xent, chunk=4, allow_batch_norm=True).backward(a, b)
    assert int(net[1].num_batches_tracked) == 4
    net.eval()
    GradCache(net, nt_xent, chunk=4).backward(a, b)  # fixed statistics treat rows independently
    assert int(net[1].num_batches_tracked) == 4


class Counted(nn.Module):
    """Stands for DistributedDataParallel: counts the backward passes that would exchange gradients."""

    def __init__(self, module):
        super().__init__()
        self.module, self.quiet, self.exchanges = module, False, 0

    def no_sync(self):
        import contextlib

        @contextlib.contextmanager
        def context():
            self.quiet = True
            yield
            self.quiet = False

        return context()

    def forward(self, x):
        y = self.module(x)
        if y.requires_grad:
            quiet = self.quiet
            y.register_hook(lambda g: setattr(self, "exchanges", self.exchanges + (not quiet)))
        return y


def test_gradients_are_exchanged_with_the_last_chunk_only():
    shared = Counted(encoder())
    GradCache(shared, nt_xent, chunk=3).backward(batch(10, 6), batch(10, 6, seed=1))
    assert shared.exchanges == 1
    pair = [Counted(encoder()), Counted(encoder(1))]
    GradCache(pair, nt_xent, chunk=3).backward(batch(10, 6), batch(10, 6, seed=1))
    assert [each.exchanges for each in pair] == [1, 1]


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = encoder()

    def forward(self, x, weight):
        return self.net(x * weight)


def test_batches_of_several_tensors_and_a_scaler():
    model, x, w = TwoInputs(), batch(7, 6), batch(7, 6, seed=1)
    nt_xent(model(x, w), model(w, x)).backward()
    reference = gradients(model)
    model.zero_grad()
    GradCache(model, nt_xent, chunk=2).backward({"x": x, "weight": w}, (w, x))
    for ours, theirs in zip(gradients(model), reference, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-10)
    model.zero_grad()
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    GradCache(model, nt_xent, chunk=2, scaler=scaler).backward([x, w], (w, x))
    for ours, theirs in zip(gradients(model), reference, strict=True):
        torch.testing.assert_close(ours, 8 * theirs, atol=1e-12, rtol=1e-10)


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="chunk"):
        GradCache(encoder(), nt_xent, chunk=0)
    cache = GradCache([encoder()], nt_xent, chunk=2)
    with pytest.raises(ValueError, match="one for each"):
        cache.backward(batch(2, 6), batch(2, 6))
    with pytest.raises(ValueError, match="rows"):
        GradCache(encoder(), nt_xent, chunk=2).backward(batch(0, 6), batch(0, 6))
    with pytest.raises(ValueError, match="rows"):
        GradCache(TwoInputs(), nt_xent, chunk=2).backward((batch(3, 6), batch(2, 6)))
