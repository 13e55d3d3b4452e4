"""How MPCL's step is wired: what each term is made of, what the teacher follows, what is drawn."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cl_medical.mpcl import NetworkConfig, Segmenter, Settings, VNet, in_memory, spread, train_segmenter
from cl_medical.mpcl.data import Patches, TrainingData, patches
from cl_medical.mpcl.evaluation import mean_dice
from cl_medical.mpcl.model import Output
from cl_medical.mpcl.objective import supervised_loss
from cl_medical.mpcl.presets import ObjectiveSettings
from cl_medical.mpcl.system import SegmentationSystem
from cl_medical.volumes import DataOptions, Preprocessing
from cl_medical.volumes.plan import DataPlan
from contrastive_core.errors import ContrastiveWarning, InputError
from contrastive_core.nn import sigmoid_rampup
from contrastive_core.training import RunFolder, TrainSettings

from tests.medical.conftest import ball

TINY = NetworkConfig(width=4, downsamplings=2)
STEP, STEPS = 5, 10


def system(classes=2, **objective):
    torch.manual_seed(0)
    made = SegmentationSystem(VNet(TINY, classes), Settings(objective=ObjectiveSettings(**objective)))
    trainer = {"global_step": STEP, "max_steps": STEPS, "seed": 0, "accumulate_grad_batches": 1, "global_rank": 0}
    made._trainer = SimpleNamespace(**trainer)
    made.logged = {}
    made.log = lambda name, value, **_: made.logged.update({name: value})
    made.log_dict = lambda values: made.logged.update(values)
    return made


def batch(image=None, label=None, unlabelled=None):
    torch.manual_seed(0)
    images = [torch.rand(1, 8, 8, 8) if each is None else each for each in (image, unlabelled)]
    if label is None:
        label = torch.zeros(8, 8, 8, dtype=torch.long)
        label[2:5] = 1
    labels = torch.stack([label, torch.full_like(label, -1)])
    return [torch.stack(images), labels, torch.tensor([True, False])]


class Stub(torch.nn.Module):
    """A teacher with the outputs it is given."""

    def __init__(self, output):
        super().__init__()
        self.output, self.seen = output, []

    def forward(self, x):
        self.seen.append(x)
        return self.output

    def update(self, student):
        raise AssertionError("a training step moves no teacher")


def unsure_teacher():
    """Sure of both classes in half of the voxels, nearly undecided in the others; few prototypes channels differ."""
    torch.manual_seed(3)
    logits = torch.zeros(1, 2, 8, 8, 8)
    logits[:, 1, :4] = 9.0
    logits[:, 1, 4:6] = -9.0
    logits[:, 0, 6:] = 0.3
    return Output(logits.expand(4, -1, -1, -1, -1, -1), torch.rand(1, 8, 4, 4, 4))


def expected_terms(made, image, label):
    """The step of one labelled and one unlabelled image with K = 1, written out on full-resolution features."""
    output, teacher = made.network(image), made.teacher.output
    weight = sigmoid_rampup(STEP, made.objective.ramp * STEPS)
    full, other = (F.interpolate(x.features, size=(8, 8, 8), mode="trilinear")[0] for x in (output, teacher))
    probability = teacher.logits.softmax(1)[0]
    pseudo = probability.argmax(0)
    trust = 1 + (probability * probability.log()).sum(0) / np.log(2)
    p_l = torch.stack([full[:, label[0] == c].mean(1) for c in (0, 1)])
    p_u = torch.stack([other[:, (pseudo == c) & (trust > 0.5)].mean(1) for c in (0, 1)])
    fused = (p_l + weight * p_u) / (1 + weight)

    def cross_entropy(features, target):
        cosines = F.cosine_similarity(features[None], fused[:, :, None, None, None], dim=1)
        return F.cross_entropy(cosines[None], target[None], reduction="none")[0]

    z = F.normalize(torch.cat([p_l, p_u]), dim=1)
    s = (z @ z.T / made.objective.temperature).fill_diagonal_(-torch.inf)
    partner = torch.tensor([2, 3, 0, 1])
    return {
        "loss_sup": supervised_loss(output.heads, label),
        "loss_pc_labelled": cross_entropy(full, label[0]).mean(),
        "loss_pc_unlabelled": weight * (trust * cross_entropy(other, pseudo)).mean(),
        "loss_contrast": weight * (s.logsumexp(1) - s[torch.arange(4), partner]).mean(),
    }


def test_every_term_of_a_step_is_what_its_equation_says():
    made = system(k=1)
    made.teacher = Stub(unsure_teacher())
    images, labels, flags = batch()
    loss = made.training_step([images, labels, flags], 0)
    assert torch.equal(made.teacher.seen[0], images[1:])
    expected = expected_terms(made, images[:1], labels[:1])
    for name, value in expected.items():
        torch.testing.assert_close(made.logged[name], value.detach(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(loss, sum(expected.values()), rtol=1e-4, atol=1e-6)
    assert made.logged["ramp"] == sigmoid_rampup(STEP, 0.75 * STEPS)
    ours = torch.autograd.grad(loss, list(made.network.parameters()))
    theirs = torch.autograd.grad(sum(expected.values()), list(made.network.parameters()))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_the_published_sum_over_unlabelled_images_is_divided_by_the_voxels_of_one():
    """Two equal unlabelled images count twice in the published form, once in the mean."""
    values = {}
    for reliability in ("log-c", "sum"):
        for copies in (1, 2):
            made = system(k=1, reliability=reliability)
            teacher = unsure_teacher()
            heads, features = teacher.heads.expand(-1, copies, -1, -1, -1, -1), teacher.features
            made.teacher = Stub(Output(heads, features.expand(copies, -1, -1, -1, -1)))
            images, labels, _ = batch()
            rest = [images[1:].expand(copies, -1, -1, -1, -1), labels[1:].expand(copies, -1, -1, -1)]
            both = [torch.cat([images[:1], rest[0]]), torch.cat([labels[:1], rest[1]])]
            made.training_step([*both, torch.tensor([True] + [False] * copies)], 0)
            values[reliability, copies] = float(made.logged["loss_pc_unlabelled"])
    assert values["log-c", 2] == pytest.approx(values["log-c", 1], rel=1e-5)
    assert values["sum", 2] == pytest.approx(2 * values["sum", 1], rel=1e-5)


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"contrast": 0.0}, {"loss_sup", "loss_pc_labelled", "loss_pc_unlabelled"}),
        ({"alignment": 0.0}, {"loss_sup", "loss_contrast"}),
        ({"match": "hungarian"}, {"loss_sup", "loss_pc_labelled", "loss_pc_unlabelled", "loss_contrast"}),
    ],
)
def test_parts_of_the_method_can_be_left_out(options, parts):
    made = system(**options)
    loss = made.training_step(batch(), 0)
    terms = {name: value for name, value in made.logged.items() if name.startswith("loss_")}
    assert {name for name, value in terms.items() if value > 0} == parts
    torch.testing.assert_close(loss.detach(), sum(terms.values()))


@pytest.mark.parametrize("method", ["mean-teacher", "ua-mt"])
def test_consistency_is_between_noisy_views_whose_noise_is_clamped(method):
    made = system(method=method)
    made.teacher = Stub(unsure_teacher())
    seen, forward = [], made.network.forward
    made.network.forward = lambda x: (seen.append(x), forward(x))[1]
    images, labels, flags = batch()
    made.training_step([images, labels, flags], 0)
    assert len(made.teacher.seen) == (8 if method == "ua-mt" else 1)
    noises = [x - images[1:] for x in (seen[1], *made.teacher.seen)]
    for noise in noises:
        assert float(noise.abs().max()) == pytest.approx(0.2, abs=1e-6)
        assert 0.08 < float(noise.std()) < 0.11
    assert not torch.equal(noises[0], noises[1])
    student = forward(seen[1]).logits.softmax(1)
    probability = made.teacher.output.logits.softmax(1)
    weight = sigmoid_rampup(STEP, 0.75 * STEPS)
    error = (student - probability).square().mean(1)
    entropy = -(probability * probability.log()).sum(1)
    mask = (
        entropy < (0.75 + 0.25 * weight) * np.log(2) if method == "ua-mt" else torch.ones_like(error, dtype=torch.bool)
    )
    assert mask.float().mean() == (0.75 if method == "ua-mt" else 1)
    torch.testing.assert_close(made.logged["loss_consistency"], (weight * 0.1 * error[mask].mean()).detach())


def test_running_prototypes_are_averages_of_what_was_there():
    made = system(k=1, ema=0.75)
    made.teacher = Stub(unsure_teacher())
    made.training_step(batch(), 0)
    first = made.running_centers.clone()
    assert made.running_present.tolist() == [True, True]
    made.teacher.output = made.teacher.output._replace(features=torch.rand(1, 8, 4, 4, 4) + 1)
    fresh = system(k=1)
    fresh.teacher = made.teacher
    fresh.training_step(batch(), 0)
    made.training_step(batch(), 0)
    torch.testing.assert_close(made.running_centers, 0.75 * first + 0.25 * fresh.running_centers)


@pytest.mark.parametrize("assignment", ["official", "sharp"])
def test_collapsed_prototypes_are_told_once(assignment):
    made = system(assignment=assignment)
    for parameter in made.network.parameters():
        parameter.data.zero_()  # the same feature everywhere
    with pytest.warns(ContrastiveWarning, match="at step 6: K > 1 has no effect") as caught:
        made.training_step(batch(), 0)
    assert ("--assignment sharp" in str(caught[0].message)) == (assignment == "official")
    made.training_step(batch(), 0)


@pytest.mark.parametrize(
    ("method", "preset"),
    [
        *[(method, preset) for method in ("mpcl", "upcol") for preset in ("corrected", "paper-code")],
        *[(method, "corrected") for method in ("mean-teacher", "ua-mt", "sup")],  # presets do not concern them
    ],
)
@pytest.mark.filterwarnings("ignore:all prototypes of every class are the same")
@pytest.mark.parametrize("case", ["usual", "no foreground", "two voxels", "constant patch", "sure teacher", "ignored"])
def test_every_degenerate_batch_has_a_finite_loss_and_gradient(method, preset, case):
    made = system(method=method, preset=preset)
    image, unlabelled = torch.rand(1, 8, 8, 8), torch.rand(1, 8, 8, 8)
    label = torch.zeros(8, 8, 8, dtype=torch.long)
    if case == "two voxels":
        label[0, 0, :2] = 1
    elif case != "no foreground":
        label[2:5] = 1
    if case == "ignored":
        label[:] = -1
    if case == "constant patch":
        image, unlabelled = torch.zeros_like(image), torch.full_like(unlabelled, 0.3)
    if case == "sure teacher":
        with torch.no_grad():
            made.teacher.module.classifier.weight.zero_()
            made.teacher.module.classifier.bias.copy_(torch.tensor([500.0, -500.0] * 4))
    loss = made.training_step(batch(image, label, unlabelled), 0)
    loss.backward()
    assert torch.isfinite(loss)
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in made.network.parameters())
    assert all(p.grad is None for p in made.teacher.parameters())


@pytest.fixture(scope="module")
def balls():
    """Two labelled balls, three unlabelled ones, one for validation."""
    made = [ball(index, (16, 16, 16)) for index in range(6)]
    options = DataOptions(patch=(8, 8, 16), scaling="none")
    return in_memory(made[:2], [x for x, _ in made[2:5]], made[5:], classes=("background", "ball"), options=options)


def settings(steps=4, **objective):
    training = TrainSettings(steps=steps, accelerator="cpu", progress=False, validate_every=2, seed=1)
    return Settings(objective=ObjectiveSettings(**objective), network=TINY, batch_size=1, training=training)


@pytest.mark.parametrize("method", ["upcol", "mean-teacher", "ua-mt", "sup"])
def test_baselines_share_everything_but_the_terms_of_their_loss(balls, tmp_path, method):
    with RunFolder.create(tmp_path / "run", {}) as run:
        train_segmenter(dataclasses.replace(balls, validation=[]), settings(2, method=method), run)
        logged = {name for row in run.metrics() for name in row if name.startswith("loss_")}
    prototypes = {"loss_pc_labelled", "loss_pc_unlabelled"}
    consistency = {"loss_consistency"}
    terms = {"upcol": prototypes, "mean-teacher": consistency, "ua-mt": consistency, "sup": set()}
    assert logged == {"loss_sup", *terms[method]}


def test_half_precision_trains_where_torch_computes_it_right(balls):
    half = dataclasses.replace(settings(3), training=dataclasses.replace(settings(3).training, precision="bf16-mixed"))
    with pytest.raises(InputError, match=r"(?s)--precision.*sides of 2 voxels"):
        train_segmenter(balls, half)
    whole = dataclasses.replace(balls, plan=dataclasses.replace(balls.plan, patch=(16, 16, 16)))
    segmenter = train_segmenter(whole, half)
    assert spread(segmenter.prototypes.centers).min() > 0.01


def test_the_teacher_follows_the_student_by_its_decay(balls, monkeypatch):
    states = []

    def remember(self, *_):
        copies = ([p.detach().clone() for p in net.parameters()] for net in (self.network, self.teacher.module))
        states.append(tuple(copies))

    monkeypatch.setattr(SegmentationSystem, "on_train_batch_end", remember, raising=False)
    train_segmenter(balls, settings(4, method="mean-teacher", ema=0.3))
    assert len(states) == 4
    assert all(torch.equal(a, b) for a, b in zip(*states[0], strict=True))  # the first update copies
    for step in range(1, 4):
        decay = min(1 - 1 / (step + 1), 0.3)
        for before, after, student in zip(states[step - 1][1], states[step][1], states[step][0], strict=True):
            torch.testing.assert_close(after, decay * before + (1 - decay) * student)
    assert any(not torch.equal(a, b) for a, b in zip(states[0][0], states[3][0], strict=True))


def test_validation_draws_nothing_from_training_and_chooses_the_weights(balls, monkeypatch):
    def scored(*scores):
        values = iter(scores)
        monkeypatch.setattr("cl_medical.mpcl.training.mean_dice", lambda *_: (torch.rand(3), next(values))[1])
        return list(train_segmenter(balls, settings(4)).network.parameters())

    alone = list(train_segmenter(dataclasses.replace(balls, validation=[]), settings(4)).network.parameters())
    improving, worsening = scored(0.1, 0.9), scored(0.9, 0.1)
    assert all(torch.equal(a, b) for a, b in zip(alone, improving, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(alone, worsening, strict=True))


def test_a_voxel_that_does_not_count_leaves_no_trace_in_dice(balls):
    image, label = balls.labelled[0]
    network = VNet(TINY, 2).train()
    whole = mean_dice(network, image, label, balls.plan)
    assert network.training
    assert mean_dice(network, image, torch.where(label == 1, 1, -1), balls.plan) >= whole
    assert mean_dice(network, image, torch.full_like(label, -1), balls.plan) == 1


def plan(patch=(8, 8, 8), augment="flip-rotate"):
    return DataPlan(patch, (4, 4, 4), Preprocessing("none"), augment, ("a", "b"))


def numbered(count, sides=20):
    return [(torch.full((1, *[sides] * 3), float(i)), torch.full([sides] * 3, i)) for i in range(count)]


def test_patches_depend_on_seed_batch_and_item_alone():
    volumes = [(torch.rand(1, 20, 20, 20), torch.randint(2, (20, 20, 20))) for _ in range(2)]
    data = TrainingData(plan(), volumes, volumes)
    items, another = (Patches(data, seed=seed, labelled=4, unlabelled=4) for seed in (1, 2))
    for index in (0, 5):
        first, again = items.at(index, draw=3), Patches(data, seed=1, labelled=4, unlabelled=4).at(index, draw=3)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
        others = [items.at(index, draw=4), items.at(index + 2, draw=3), another.at(index, draw=3)]
        for other in others:
            assert not torch.equal(first[0], other[0])
    centre = Patches(data, seed=1, labelled=4, unlabelled=4, unlabelled_crop="centre")
    assert torch.equal(centre.at(4, draw=0)[0], volumes[0][0][:, 6:14, 6:14, 6:14])
    assert not torch.equal(centre.at(0, draw=0)[0], centre.at(0, draw=1)[0])


def test_image_and_label_are_turned_together():
    image = torch.arange(20.0**3).view(1, 20, 20, 20)
    items = Patches(TrainingData(plan(), [(image, image[0].long())]), seed=0, labelled=1, unlabelled=0)
    for draw in range(8):
        x, y, labelled = items.at(0, draw=draw)
        assert torch.equal(x[0].long(), y)
        assert labelled


def test_both_streams_visit_all_volumes_evenly_and_in_the_ratio_asked_for():
    data = TrainingData(plan(augment="none"), numbered(3), numbered(5))
    chosen = Settings(batch_size=2, ratio=2, repeats=4, training=TrainSettings(seed=5))
    loader = patches(data, chosen)
    seen = {True: [], False: []}
    for _ in range(5):  # five epochs of 3 * 4 / 2 batches
        for images, labels, flags in loader:
            assert flags.tolist() == [True] * 2 + [False] * 4
            assert (labels[2:] == -1).all()
            for value, flag in zip(images[:, 0, 0, 0, 0].tolist(), flags.tolist(), strict=True):
                seen[flag].append(int(value))
    assert torch.bincount(torch.tensor(seen[True])).tolist() == [20, 20, 20]
    assert torch.bincount(torch.tensor(seen[False])).tolist() == [24] * 5
    with pytest.raises(InputError, match="needs unlabelled"):
        patches(dataclasses.replace(data, unlabelled=[]), chosen)


def test_both_streams_divide_among_processes():
    data = TrainingData(plan(augment="none"), numbered(3), numbered(5))
    order = patches(data, Settings(batch_size=2, ratio=2)).batch_sampler.order
    order.share(2)
    whole = order.plan(0)[0]
    parts = [order.part(whole, rank) for rank in (0, 1)]
    assert [sum(index < 15 for index in part) for part in parts] == [1, 1]
    assert sorted(np.concatenate(parts)) == sorted(whole)
    with pytest.raises(InputError, match="divide"):
        patches(data, Settings(batch_size=1, ratio=2)).batch_sampler.order.share(2)


def test_from_arrays_to_a_saved_segmenter_and_back(balls, tmp_path):
    segmenter = train_segmenter(balls, settings(2))
    segmenter.save(tmp_path / "model")
    again = Segmenter.load(tmp_path / "model", device="cpu")
    image = ball(9, (18, 14, 16))[0]
    first, second = (each.segment(image, probabilities=True) for each in (segmenter, again))
    assert first.labels.shape == image.shape
    np.testing.assert_array_equal(first.labels, second.labels)
    np.testing.assert_allclose(first.probabilities.sum(0), 1, atol=1e-5)
    with pytest.raises(InputError, match="differ in shape"):
        in_memory([(image, np.zeros((3, 3, 3)))], classes=("a", "b"))
    with pytest.raises(InputError, match="no class"):
        in_memory([(image, np.full(image.shape, 2))], classes=("a", "b"))


def _gradient(rank, world, folder):
    """Gradient of one step, of this process's share of two labelled and four unlabelled patches."""
    if world > 1:
        torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    made = system(classes=3, k=1, reliability="sum", masked=False)
    torch.manual_seed(1)
    images, labels = torch.rand(6, 1, 8, 8, 8), torch.randint(3, (2, 8, 8, 8))
    labels[1][labels[1] == 2] = 0  # a class that one of the processes does not hold
    mine = slice(rank * 2 // world, (rank + 1) * 2 // world), slice(2 + rank * 4 // world, 2 + (rank + 1) * 4 // world)
    parts = [images[mine[0]], images[mine[1]]]
    unknown = torch.full((len(parts[1]), 8, 8, 8), -1)
    flags = torch.tensor([True] * len(parts[0]) + [False] * len(parts[1]))
    made.training_step([torch.cat(parts), torch.cat([labels[mine[0]], unknown]), flags], 0).backward()
    gradient = torch.cat([p.grad.flatten() for p in made.network.parameters()])
    if world > 1:
        torch.distributed.all_reduce(gradient)
        torch.distributed.destroy_process_group()
    torch.save(gradient / world, folder / f"{rank}-of-{world}.pt")


def test_two_processes_have_the_gradient_of_one(tmp_path):
    """With prototypes of all processes: one a class, so that nothing is drawn."""
    context = torch.multiprocessing.get_context("fork")
    workers = [context.Process(target=_gradient, args=(rank, 2, tmp_path)) for rank in (0, 1)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0
    _gradient(0, 1, tmp_path)
    one, two = (torch.load(tmp_path / f"0-of-{world}.pt", weights_only=True) for world in (1, 2))
    assert float(one.norm()) > 0.1
    torch.testing.assert_close(two, one, rtol=1e-3, atol=1e-5 * float(one.abs().max()))
