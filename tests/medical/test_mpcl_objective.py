"""What the mathematics of MPCL has to satisfy: closed forms, invariances, gradients, degenerate input."""

import math
import sys
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from cl_medical.mpcl.features import cosine_maps, features_at, mean_feature, squared_norms
from cl_medical.mpcl.ihpg import (
    Prototypes,
    PrototypeSettings,
    class_prototypes,
    histogram_seeds,
    ihpg,
    scale_intensity,
    spread,
)
from cl_medical.mpcl.model import NetworkConfig, VNet
from cl_medical.mpcl.objective import (
    dice_loss,
    focal_loss,
    fuse,
    masked_mse,
    prototype_contrast,
    prototype_cross_entropy,
    prototype_maps,
    pseudo_labels,
    soft_iou_loss,
    supervised_loss,
)
from cl_medical.mpcl.presets import ObjectiveSettings
from cl_medical.mpcl.system import OptimSettings
from contrastive_core.errors import InputError

TINY = NetworkConfig(width=4, downsamplings=2)


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


def prototypes(centers, present=None):
    c, k, _ = centers.shape
    present = torch.ones(c, dtype=torch.bool) if present is None else torch.tensor(present)
    return Prototypes(centers, torch.arange(k).expand(c, k).to(centers), centers.new_full((c, k), 1 / k), present)


def upsampled(x6, size):
    return F.interpolate(x6, size=size, mode="trilinear", align_corners=False)


@pytest.mark.parametrize("size", [(8, 8, 8), (13, 9, 8), (4, 3, 2), (7, 3, 5)])
def test_full_resolution_features_are_read_without_being_made(size):
    torch.manual_seed(0)
    x6 = torch.rand(2, 5, 4, 3, 2, dtype=torch.float64, requires_grad=True)
    full = upsampled(x6, size)
    torch.testing.assert_close(squared_norms(x6, size), full.square().sum(1))
    voxels = torch.arange(math.prod(size))
    torch.testing.assert_close(features_at(x6[1], size, voxels), full[1].flatten(1).T)
    inside = torch.rand(size) > 0.5
    torch.testing.assert_close(mean_feature(x6[1], inside), full[1][:, inside].mean(1))
    p = torch.randn(6, 5, dtype=torch.float64)
    expected = torch.einsum("bdxyz,md->bmxyz", F.normalize(full, dim=1), F.normalize(p, dim=1))
    weight = torch.randn_like(expected)
    torch.testing.assert_close(cosine_maps(x6, p, size), expected)
    ours = torch.autograd.grad((cosine_maps(x6, p, size) * weight).sum(), x6)[0]
    dense = torch.autograd.grad((expected * weight).sum(), x6)[0]
    torch.testing.assert_close(ours, dense)


def test_published_network_has_the_published_size():
    network = VNet(NetworkConfig(), 2)
    assert sum(parameter.numel() for parameter in network.parameters()) == 9_464_152
    with torch.no_grad():
        output = network(torch.randn(1, 1, 32, 16, 16))
    assert output.heads.shape == (4, 1, 2, 32, 16, 16)
    assert output.features.shape == (1, 128, 4, 2, 2)
    assert output.features.min() >= 0


@pytest.mark.parametrize("sides", [(12, 16, 16), (16, 16, 16), (0, 16, 16)])
def test_network_refuses_sides_it_cannot_halve(sides):
    with pytest.raises(ValueError, match="multiples of 16"):
        VNet(NetworkConfig(width=1), 2)(torch.zeros(1, 1, *sides))


def test_one_prototype_is_the_mean_of_the_class():
    torch.manual_seed(0)
    x6, image = torch.rand(6, 4, 4, 4), torch.rand(8, 8, 8)
    mask = torch.rand(8, 8, 8) > 0.6
    found, intensity, share = class_prototypes(x6, image, mask, PrototypeSettings(k=1, max_voxels=10), draws())
    torch.testing.assert_close(found[0], upsampled(x6[None], (8, 8, 8))[0][:, mask].mean(1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(intensity[0], image[mask].mean())
    assert share.tolist() == [1.0]


@pytest.mark.parametrize("assignment", ["official", "sharp"])
def test_constant_features_give_the_constant(assignment):
    x6 = torch.tensor([0.5, 2.0, 1.0]).view(3, 1, 1, 1).expand(3, 4, 4, 4)
    mask = torch.ones(8, 8, 8, dtype=torch.bool)
    settings = PrototypeSettings(assignment=assignment)
    found, _, _ = class_prototypes(x6, torch.rand(8, 8, 8, generator=draws()), mask, settings, draws())
    torch.testing.assert_close(found, x6[:, 0, 0, 0].expand(3, 3))


def test_seeds_come_from_the_peaks():
    values = torch.tensor([0.205] * 50 + [0.505] * 30 + [0.805] * 20)
    assert histogram_seeds(values, 3).tolist() == [20, 50, 80]
    crowded = torch.cat([values, torch.full((40,), 0.255)])
    assert histogram_seeds(crowded, 3).tolist() == [20, 50, 80]
    # Four are wanted: the suppressed one comes back.
    assert histogram_seeds(crowded, 4).tolist() == [20, 50, 80, 25]
    # One value only, at the closed upper end: the rest are any bins.
    assert histogram_seeds(torch.ones(7), 3).tolist() == [99, 0, 1]
    assert len(set(histogram_seeds(torch.rand(50, generator=draws()), 8).tolist())) == 8


def modes():
    """Three orthogonal features tied to three intensities, in slabs of one axis."""
    image = torch.empty(12, 6, 6)
    x6 = torch.zeros(3, 12, 6, 6)
    for index, value in enumerate((0.205, 0.505, 0.805)):
        image[4 * index : 4 * index + 4] = value
        x6[index, 4 * index : 4 * index + 4] = 1
    return x6, image


@pytest.mark.parametrize("gradient", ["iterations", "means"])
@pytest.mark.parametrize("assignment", ["official", "sharp"])
def test_prototypes_follow_the_published_iteration(assignment, gradient, monkeypatch):
    """Ten iterations written out on the upsampled map, with all differences made, give the same result and gradient."""
    torch.manual_seed(0)
    size, seeds = (8, 6, 7), torch.tensor([3, 40, 100])
    x6 = torch.rand(5, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    mask = torch.rand(size) > 0.4
    monkeypatch.setattr(sys.modules[class_prototypes.__module__], "_seed_voxels", lambda *_: seeds)
    settings = PrototypeSettings(assignment=assignment, gradient=gradient, max_voxels=0)
    found, *_ = class_prototypes(x6, torch.rand(size, dtype=torch.float64), mask, settings, draws())
    features = upsampled(x6[None], size)[0].permute(1, 2, 3, 0)[mask]
    axes = torch.meshgrid(*(torch.linspace(-1, 1, side, dtype=torch.float64) for side in size), indexing="ij")
    places = torch.stack(axes, -1)[mask]
    c, q = features[seeds], places[seeds]
    for _ in range(10):
        distance = (features[:, None] - c).norm(dim=2) + (places[:, None] - q).norm(dim=2) / 100
        if assignment == "official":
            weight = (-distance.clamp_min(1e-12).sqrt()).exp()
        else:
            weight = (-10 * distance / distance.detach().mean()).exp()
        weight = weight / weight.sum(1, keepdim=True)
        weight = weight.detach() if gradient == "means" else weight
        mass = weight.sum(0)[:, None]
        c, q = (weight[:, :, None] * features[:, None]).sum(0) / mass, weight.T @ places / mass
    torch.testing.assert_close(found, c, rtol=1e-5, atol=1e-6)
    direction = torch.randn_like(c)
    ours, literal = (torch.autograd.grad((value * direction).sum(), x6, retain_graph=True)[0] for value in (found, c))
    torch.testing.assert_close(ours, literal, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("seeding", ["intensity", "random", "k-means"])
def test_prototypes_start_where_they_are_told(seeding):
    """Features say nothing of intensity here: only seeds far apart in the features find all three modes every time."""
    x6, image = modes()
    image = torch.rand(image.shape, generator=draws())
    mask = torch.ones_like(image, dtype=torch.bool)
    settings = PrototypeSettings(seeding=seeding, max_voxels=100, iterations=1)
    found = []
    for seed in range(12):
        centers, *_ = class_prototypes(x6, image, mask, settings, draws(seed))
        unit = F.normalize(centers, dim=1)
        found.append((unit @ unit.T)[~torch.eye(3, dtype=torch.bool)].max().item() < 0.5)
    assert any(found)
    assert all(found) == (seeding == "k-means")
    flat, *_ = class_prototypes(torch.ones_like(x6), image, mask, settings, draws())
    torch.testing.assert_close(flat, torch.ones(3, 3))


def test_prototypes_are_paired_by_cosine():
    a, _ = random_pair()
    order = torch.tensor([[2, 0, 1], [1, 2, 0]])
    shuffled = replace(a.take(order), centers=3 * a.take(order).centers)
    torch.testing.assert_close(shuffled.matched(a).centers, 3 * a.centers)
    torch.testing.assert_close(shuffled.matched(a).intensity, a.intensity)


def test_sharp_prototypes_stay_apart_where_the_published_ones_collapse():
    x6, image = modes()
    mask = torch.ones_like(image, dtype=torch.bool)
    cosines = {}
    for assignment in ("sharp", "official"):
        found, _, share = class_prototypes(x6, image, mask, PrototypeSettings(assignment=assignment), draws())
        unit = F.normalize(found, dim=1)
        cosines[assignment] = (unit @ unit.T)[~torch.eye(3, dtype=torch.bool)]
        torch.testing.assert_close(share.sum(), torch.tensor(1.0))
    assert cosines["sharp"].max() < 0.2
    assert cosines["official"].min() > 0.95


def test_prototypes_of_two_images_correspond_after_sorting():
    x6, image = modes()
    found = ihpg(
        x6[None], image[None, None], torch.zeros(1, 12, 6, 6, dtype=torch.long), 1, PrototypeSettings(), draws()
    )
    assert found.intensity[0].tolist() == sorted(found.intensity[0].tolist())
    assert found.centers[0].argmax(1).tolist() == [0, 1, 2]
    assert spread(found.centers).item() > 1
    assert spread(found.centers[:, :1]).item() == 0


def test_all_voxels_and_a_sample_of_them_agree():
    torch.manual_seed(0)
    x6, image = modes()
    x6 = x6 + 0.05 * torch.rand_like(x6)
    mask = torch.ones_like(image, dtype=torch.bool)
    whole, *_ = class_prototypes(x6, image, mask, PrototypeSettings(max_voxels=0), draws())
    some, *_ = class_prototypes(x6, image, mask, PrototypeSettings(max_voxels=200), draws())
    order = (F.normalize(whole, dim=1) @ F.normalize(some, dim=1).T).argmax(1)
    assert sorted(order.tolist()) == [0, 1, 2]
    assert (whole - some[order]).abs().max() < 0.05


def test_duplicated_prototypes_change_nothing_and_scale_does_not_matter():
    torch.manual_seed(0)
    x6, p = torch.rand(1, 5, 3, 3, 3), torch.rand(2, 1, 5)
    g, winner = prototype_maps(x6, p, (6, 6, 6))
    many, _ = prototype_maps(x6, p.repeat(1, 4, 1), (6, 6, 6))
    torch.testing.assert_close(many, g)
    torch.testing.assert_close(prototype_maps(7 * x6, 0.2 * p, (6, 6, 6))[0], g)
    assert torch.equal(winner, g.argmax(1))
    only, winner = prototype_maps(x6, p, (6, 6, 6), torch.tensor([False, True]))
    assert (only[:, 0] == -1).all()
    assert (winner == 1).all()


def random_pair(classes=2, k=3, d=6):
    torch.manual_seed(1)
    return prototypes(torch.randn(classes, k, d)), prototypes(torch.randn(classes, k, d))


@pytest.mark.parametrize("self_negative", [False, True])
def test_contrast_equals_its_equation_and_is_invariant(self_negative):
    a, b = random_pair()
    z = F.normalize(torch.cat([a.centers.reshape(-1, 6), b.centers.reshape(-1, 6)]), dim=1)
    group = torch.tensor([0, 0, 0, 1, 1, 1] * 2)
    s = (z @ z.T / 0.1).exp()
    rest = s if self_negative else s - s.diag().diag()
    positive = (s * ((group[:, None] == group) & ~torch.eye(12, dtype=torch.bool))).sum(1)
    expected = -(positive / rest.sum(1)).log().mean()
    loss = prototype_contrast(a, b, self_negative=self_negative)
    torch.testing.assert_close(loss, expected)
    turn = torch.linalg.qr(torch.randn(6, 6))[0]
    for x, y in (
        (b, a),
        (prototypes(a.centers[:, [2, 0, 1]]), b),
        (prototypes(a.centers @ turn), prototypes(b.centers @ turn)),
    ):
        torch.testing.assert_close(prototype_contrast(x, y, self_negative=self_negative), loss)


@pytest.mark.parametrize("k", [1, 3])
def test_contrast_at_its_minimum(k):
    v = torch.tensor([1.0, 0, 0])
    centers = torch.stack([v, -v])[:, None].expand(2, k, 3).double()
    pair = prototypes(centers), prototypes(centers)
    assert prototype_contrast(*pair).item() < 1e-6
    floor = math.log(2 * k / (2 * k - 1))
    assert prototype_contrast(*pair, self_negative=True).item() == pytest.approx(floor, abs=1e-6)


def test_contrast_with_positives_of_the_same_index_only():
    a, b = random_pair()
    z = F.normalize(torch.cat([a.centers.reshape(-1, 6), b.centers.reshape(-1, 6)]), dim=1)
    s = z @ z.T / 0.1
    expected = (s - torch.eye(12) * 1e9).logsumexp(1) - s[torch.arange(12), (torch.arange(12) + 6) % 12]
    torch.testing.assert_close(prototype_contrast(a, b, positives="same-index"), expected.mean())


def test_absent_classes_leave_the_contrast_and_the_fusion():
    a, b = random_pair()
    lone = prototypes(a.centers, [True, False]), prototypes(b.centers, [True, False])
    assert prototype_contrast(*lone).item() == pytest.approx(0, abs=1e-6)
    assert prototype_contrast(prototypes(a.centers, [False, False]), prototypes(b.centers, [False, False])).item() == 0
    mixed = fuse(prototypes(a.centers, [True, False]), prototypes(b.centers, [True, True]), 0.5)
    torch.testing.assert_close(mixed[0][0], (a.centers[0] + 0.5 * b.centers[0]) / 1.5)
    torch.testing.assert_close(mixed[0][1], b.centers[1])
    running = prototypes(torch.full((2, 3, 6), 7.0))
    fused, present = fuse(prototypes(a.centers, [True, False]), prototypes(b.centers, [False, False]), 0.5, running)
    torch.testing.assert_close(fused[0], a.centers[0])
    assert (fused[1] == 7).all()
    assert present.tolist() == [True, True]
    published, present = fuse(prototypes(a.centers, [True, False]), b, 0.5, masked=False)
    torch.testing.assert_close(published, (a.centers + 0.5 * b.centers) / 1.5)


def test_alignment_reaches_the_student_through_the_labelled_prototypes_only():
    torch.manual_seed(0)
    student, teacher = VNet(TINY, 2), VNet(TINY, 2)
    x, u = torch.rand(1, 1, 8, 8, 8), torch.rand(1, 1, 8, 8, 8)
    y = (torch.rand(1, 8, 8, 8) > 0.5).long()
    for attached in (True, False):
        student.zero_grad()
        ours = ihpg(student(x).features, x, y, 2, PrototypeSettings(), draws())
        ours = ours if attached else ours.detach()
        with torch.no_grad():
            taught = teacher(u)
            pseudo, trust = pseudo_labels(taught.logits)
            theirs = ihpg(taught.features, u, pseudo, 2, PrototypeSettings(), draws())
        fused, present = fuse(ours, theirs, 0.3)
        loss = prototype_cross_entropy(taught.features, fused, present, pseudo, weight=trust)
        if attached:
            loss.backward()
            assert student.encoder[0][0].conv.weight.grad.abs().sum() > 0
        else:
            assert not loss.requires_grad
        assert all(parameter.grad is None for parameter in teacher.parameters())


def test_supervised_losses_are_the_textbook_ones():
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 4, 4, 4, dtype=torch.float64, requires_grad=True)
    target = torch.randint(3, (2, 4, 4, 4))
    p = logits.softmax(1)
    g = F.one_hot(target, 3).movedim(-1, 1).double()
    inter, sums = (p * g).sum((2, 3, 4)), p.sum((2, 3, 4)) + g.sum((2, 3, 4))
    torch.testing.assert_close(dice_loss(logits, target), 1 - ((2 * inter + 1e-5) / (sums + 1e-5)).mean())
    torch.testing.assert_close(soft_iou_loss(logits, target), 1 - ((inter + 1e-5) / (sums - inter + 1e-5)).mean())
    true = (p * g).sum(1)
    torch.testing.assert_close(focal_loss(logits, target), (-((1 - true) ** 2) * true.log()).mean())
    # The factor is a constant for the gradient.
    ours = torch.autograd.grad(focal_loss(logits, target), logits)[0]
    fixed = torch.autograd.grad((-((1 - true.detach()) ** 2) * true.log()).mean(), logits)[0]
    torch.testing.assert_close(ours, fixed)
    heads = torch.stack([logits] * 4)
    each = [
        F.cross_entropy(logits, target),
        dice_loss(logits, target),
        focal_loss(logits, target),
        soft_iou_loss(logits, target),
    ]  # noqa: E501
    torch.testing.assert_close(supervised_loss(heads, target), torch.stack(each).mean())


def test_voxels_that_do_not_count_change_no_loss_and_get_no_gradient():
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 4, 4, 4, dtype=torch.float64, requires_grad=True)
    target = torch.randint(3, (2, 4, 4, 4))
    target[:, 2:] = -1
    losses = [dice_loss, focal_loss, soft_iou_loss, lambda x, y: supervised_loss(x[None], y)]
    for loss in losses:
        value = loss(logits, target)
        torch.testing.assert_close(value, loss(logits[:, :, :2], target[:, :2]))
        gradient = torch.autograd.grad(value, logits)[0]
        assert gradient[:, :, 2:].abs().max() == 0
        assert gradient[:, :, :2].abs().max() > 0
        assert torch.isfinite(loss(logits, torch.full_like(target, -1)))
    x6, p, present = torch.rand(2, 5, 2, 2, 2), torch.rand(3, 1, 5), torch.ones(3, dtype=torch.bool)
    whole = prototype_cross_entropy(x6, p, present, target)
    inside = target >= 0
    maps, _ = prototype_maps(x6, p, (4, 4, 4))
    expected = F.cross_entropy(maps.movedim(1, -1)[inside], target[inside])
    torch.testing.assert_close(whole, expected)
    image = torch.rand(2, 1, 4, 4, 4)
    half = ihpg(x6, image, target, 3, PrototypeSettings(k=1), draws())
    wanted = upsampled(x6, (4, 4, 4))
    means = [torch.stack([wanted[i][:, target[i] == c].mean(1) for i in (0, 1)]).mean(0) for c in range(3)]
    torch.testing.assert_close(half.centers[:, 0], torch.stack(means))


@pytest.mark.parametrize("masked", [True, False])
def test_a_class_in_one_of_two_images_is_averaged_over_one_or_as_published_over_both(masked):
    torch.manual_seed(0)
    x6, image = torch.rand(2, 5, 2, 2, 2), torch.rand(2, 1, 4, 4, 4)
    target = torch.zeros(2, 4, 4, 4, dtype=torch.long)
    target[1, :2] = 1
    mean = upsampled(x6, (4, 4, 4))[1][:, target[1] == 1].mean(1)
    both = ihpg(x6, image, target, 2, PrototypeSettings(k=1), draws(), masked=masked)
    torch.testing.assert_close(both.centers[1, 0], mean if masked else mean / 2)


def test_reliability():
    logits = torch.zeros(1, 2, 2, 2, 2)
    logits[:, 0, 0] = 50.0
    label, trust = pseudo_labels(logits)
    torch.testing.assert_close(trust[0, 0], torch.ones(2, 2))
    torch.testing.assert_close(trust[0, 1], torch.zeros(2, 2), atol=1e-6, rtol=0)
    assert (label[0, 0] == 0).all()
    _, published = pseudo_labels(logits, reliability="sum")
    torch.testing.assert_close(published[0, 1], torch.full((2, 2), 0.75))
    confident = torch.zeros(1, 2, 2, 2, 2)
    confident[:, 0] = 1000.0
    for kind in ("sum", "log-c"):
        assert (pseudo_labels(confident, reliability=kind)[1] == 1).all()


def test_masked_mse():
    teacher = torch.zeros(1, 2, 2, 2, 2)
    teacher[:, 0] = 1
    student = torch.zeros(1, 2, 2, 2, 2)
    mask = torch.zeros(1, 2, 2, 2, dtype=torch.bool)
    assert masked_mse(student, teacher).item() == pytest.approx(0.25)
    assert masked_mse(student, teacher, mask).item() == 0


def test_intensities_are_scaled_from_their_own_lowest_to_their_highest():
    levels = torch.tensor([-3.0, -1.0, 1.0, 5.0, 5.0, 1.0, -1.0, -3.0]).view(1, 1, 2, 2, 2)
    expected = torch.tensor([0.0, 0.25, 0.5, 1.0, 1.0, 0.5, 0.25, 0.0]).view(1, 2, 2, 2)
    torch.testing.assert_close(scale_intensity(levels), expected)


def test_levels_fall_into_the_bins_that_single_precision_gives():
    """Levels k / 100 of an image of 101 of them: all but two bins hold the level of their number."""
    levels = torch.arange(101) / 100
    bins = [int(histogram_seeds(level.repeat(9), 1)) for level in levels]
    assert sum(own != min(k, 99) for k, own in enumerate(bins)) == 2
    assert int(histogram_seeds(torch.cat([levels, torch.full((9,), 0.29)]), 2)[0]) == 29


def test_a_seed_is_a_voxel_of_its_bin():
    """Levels 0.29 and 0.71 in separate slabs: the seeds' features are those of the slabs, also where bins are edges."""
    x6, image = modes()
    image = torch.tensor([0.29, 0.57, 0.83])[x6.argmax(0)]
    settings = PrototypeSettings(iterations=1, max_voxels=0)
    for seed in range(6):
        centers, *_ = class_prototypes(x6, image, torch.ones_like(image, dtype=torch.bool), settings, draws(seed))
        assert sorted(centers.argmax(1).tolist()) == [0, 1, 2]


def test_constant_images_are_scaled_without_division_by_zero():
    assert (scale_intensity(torch.full((1, 1, 2, 2, 2), 3.0)) == 0).all()
    both = scale_intensity(torch.stack([torch.arange(8.0), 100 * torch.arange(8.0)]).view(2, 1, 2, 2, 2))
    torch.testing.assert_close(both[0], both[1])


def test_presets_differ_where_the_published_code_does():
    ours, published = ObjectiveSettings().choices, ObjectiveSettings(preset="paper-code").choices
    assert ours == (3, "sharp", "means", 20_000, "intensity", "log-c", False, True, "random", 1.0)
    assert published == (3, "official", "iterations", 0, "index", "sum", True, False, "centre", 1.0)
    chosen = ObjectiveSettings(preset="paper-code", assignment="sharp", masked=True, max_voxels=7)
    assert (chosen.choices.assignment, chosen.choices.masked, chosen.choices.match) == ("sharp", True, "index")
    assert (chosen.prototypes.assignment, chosen.prototypes.max_voxels) == ("sharp", 7)
    assert ObjectiveSettings("upcol").choices[::9] == (1, 0.0)


@pytest.mark.parametrize(
    ("make", "option"),
    [
        (lambda: PrototypeSettings(k=0), "--k"),
        (lambda: ObjectiveSettings(k=0), "--k"),
        (lambda: PrototypeSettings(spatial_weight=-1.0), "--spatial-weight"),
        (lambda: ObjectiveSettings(contrast=-1.0), "--contrast"),
        (lambda: ObjectiveSettings(alignment=float("nan")), "--alignment"),
        (lambda: ObjectiveSettings("upcol", contrast=1.0), "--contrast"),
        (lambda: ObjectiveSettings(temperature=0.0), "--temperature"),
        (lambda: OptimSettings(lr=-1.0), "--optim.lr"),
        (lambda: NetworkConfig(width=0), "--network.width"),
    ],
)
def test_settings_out_of_range_are_refused(make, option):
    with pytest.raises(InputError, match=option):
        make()
