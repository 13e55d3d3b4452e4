"""Selection, prompts, cross-attention, fusion and losses against closed forms and independent references."""

import dataclasses
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cl_graphtext.graphs.encoders import GraphEncoder, first_attention
from cl_graphtext.graphs.graph import both_directions, homophily, undirected
from cl_graphtext.graphs.perturb import graph_perturb
from cl_graphtext.graphs.sampling import Csr, sample_block, sample_neighbours, whole_block
from cl_graphtext.promptgnn_sim.model import CrossModalBlock, Fusion, LinkHead, ModelConfig, Network
from cl_graphtext.promptgnn_sim.objective import alignment, classification, directed_alignment, link_loss
from cl_graphtext.promptgnn_sim.prompts import Bounds, Keywords, build_prompts, neighbourhood_keywords
from cl_graphtext.promptgnn_sim.selection import (
    LengthBounds,
    SelectionSettings,
    adaptive_weights,
    candidate_pairs,
    select,
)
from cl_graphtext.texts.neighbours import duplicate_groups, nearest, noise_floor, unit_rows
from contrastive_core.memory import FeatureQueue

NONE = np.zeros((0, 2), np.int64)


def csr_of(edges, n):
    pairs = both_directions(undirected(np.array(edges)))
    return Csr.of(pairs[:, 0], pairs[:, 1], n)


def pick(csr, attention, unit, weight, k, threshold=-2.0, extra=NONE, width=None):
    n = len(csr)
    return select(
        csr,
        attention,
        unit,
        extra=extra,
        weight=torch.full((n,), float(weight)),
        k=torch.full((n,), k),
        threshold=threshold,
        width=width or k,
    )


@pytest.fixture
def star():
    """Node 0 linked to 1..5, with known attention and cosines."""
    csr = csr_of([(0, i) for i in range(1, 6)], 6)
    attention = torch.zeros(len(csr.sources))
    attention[:5] = torch.tensor([0.1, 0.4, 0.2, 0.05, 0.25])
    attention[5:] = 1.0
    angle = torch.tensor([0.0, 0.3, 1.2, 0.9, 0.1, 2.0])
    return csr, attention, torch.stack([angle.cos(), angle.sin()], 1)


def test_structure_alone_orders_by_attention_and_text_alone_by_cosine(star):
    csr, attention, unit = star
    assert pick(csr, attention, unit, 1, 5).neighbours[0].tolist() == [2, 5, 3, 1, 4]
    assert pick(csr, attention, unit, 0, 5).neighbours[0].tolist() == [4, 1, 3, 2, 5]
    mixed = pick(csr, attention, unit, 0.5, 5)
    wanted = {
        j: 0.5 * a / 0.4 + 0.5 * max(0.0, float(unit[0] @ unit[j]))
        for j, a in zip(range(1, 6), [0.1, 0.4, 0.2, 0.05, 0.25])
    }
    order = sorted(wanted, key=lambda j: -wanted[j])
    assert mixed.neighbours[0].tolist() == order
    torch.testing.assert_close(mixed.scores[0], torch.tensor([wanted[j] for j in order]))


def test_selection_keeps_at_most_k_above_the_threshold_with_ties_to_the_lower_index(star):
    csr, attention, unit = star
    kept = pick(csr, attention, unit, 0.5, 2, width=4)
    assert (kept.neighbours[0] >= 0).sum() == 2
    assert kept.neighbours.shape == (6, 4)
    strict = pick(csr, attention, unit, 0.5, 5, threshold=0.9)
    assert sorted(strict.neighbours[0][strict.neighbours[0] >= 0].tolist()) == [1, 4]
    equal = pick(csr, torch.ones_like(attention), torch.ones(6, 1), 0.5, 3)
    assert equal.neighbours[0].tolist() == [1, 2, 3]


def test_further_candidates_count_by_text_alone_and_only_once(star):
    csr, attention, unit = star
    extra = np.array([[4, 1], [0, 1]])  # 4 is no neighbour of 1; 0 is one already
    kept = pick(csr, attention, unit, 0.5, 5, extra=extra)
    assert sorted(kept.neighbours[1][kept.neighbours[1] >= 0].tolist()) == [0, 4]
    place = kept.neighbours[1].tolist().index(4)
    assert kept.scores[1, place].item() == pytest.approx(0.5 * float(unit[1] @ unit[4]), abs=1e-6)


def test_nodes_without_text_are_chosen_by_structure_and_isolated_ones_keep_nobody(star):
    csr, attention, unit = star
    unit = unit.clone()
    unit[2] = 0
    kept = pick(csr, attention, unit, 0.5, 5, threshold=0.9)
    assert 2 in kept.neighbours[0].tolist()
    lonely = pick(csr_of([(0, 1)], 3), torch.ones(2), torch.eye(3), 0.5, 2)
    assert (lonely.neighbours[2] == -1).all()
    assert lonely.graph().degree.tolist()[2] == 0
    assert pick(csr_of(NONE, 3), torch.zeros(0), torch.eye(3), 0.5, 2).neighbours.tolist() == [[-1, -1]] * 3


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_threshold_raises_the_share_of_true_edges_on_a_noisy_graph(graph, features, seed):
    noisy = graph_perturb(graph, "rewire", 0.5, seed=seed)
    pairs = both_directions(noisy.edges)
    csr, unit = Csr.of(pairs[:, 0], pairs[:, 1], len(graph)), unit_rows(features)
    kept = pick(csr, torch.ones(len(csr.sources)), unit, 0.5, 10, threshold=noise_floor(unit))
    assert homophily(kept.edges(), graph.labels) > homophily(noisy.edges, graph.labels) + 0.1


def test_weights_and_numbers_adapt_to_the_length_of_texts():
    lengths = np.array([2, 10, 50])
    weight, k = adaptive_weights(lengths, LengthBounds(5, 20), SelectionSettings())
    torch.testing.assert_close(weight, torch.tensor([0.7, 0.5, 0.3]))
    assert k.tolist() == [10, 5, 3]
    weight, _ = adaptive_weights(lengths, LengthBounds(5, 20), SelectionSettings(weight=0.9))
    torch.testing.assert_close(weight, torch.tensor([0.9, 0.9, 0.7]))
    weight, _ = adaptive_weights(lengths, LengthBounds(5, 20), SelectionSettings(weight=1.0))
    assert weight.tolist() == [1, 1, 1]
    weight, k = adaptive_weights(lengths, LengthBounds(5, 20), SelectionSettings(adaptive=False, k=7))
    assert k.tolist() == [7, 7, 7]


def test_candidates_are_nearest_texts_or_neighbours_of_neighbours_of_poor_nodes():
    csr = csr_of([(0, 1), (1, 2), (2, 3)], 5)
    unit = unit_rows(torch.tensor([[1.0, 0], [0, 1], [1, 0.1], [0, 1], [1, 0.05]]))
    settings = SelectionSettings(adaptive=False, k=2, candidates=1)

    def pairs(k=2, **changes):
        return [
            tuple(pair)
            for pair in candidate_pairs(
                csr, unit, torch.full((5,), k), dataclasses.replace(settings, **changes)
            ).tolist()
        ]

    assert set(pairs()) == {(4, 0), (1, 3), (2, 4)}  # nodes 1 and 2 have two neighbours already
    assert set(pairs(augment="hop2")) == {(2, 0), (1, 3)}
    assert pairs(augment="none") == []
    assert set(pairs(k=1)) == {(2, 4)}  # how many a node may keep decides, not how wide the table is
    assert pairs(k=0) == []


def test_every_node_counts_its_own_number_of_neighbours_when_it_asks_for_candidates():
    csr = csr_of([(0, 1), (0, 2), (1, 2)], 4)
    unit = unit_rows(torch.randn(4, 3, generator=torch.Generator().manual_seed(0)))
    k = torch.tensor([2, 3, 2, 0])
    pairs = candidate_pairs(csr, unit, k, SelectionSettings(candidates=3))
    assert set(pairs[:, 1].tolist()) == {1}
    assert len(pairs) == 3


def test_neighbours_of_neighbours_are_as_many_as_asked_for_nearest_texts_first():
    hub = csr_of([(0, i) for i in range(1, 7)], 7)  # every leaf has five others two hops away
    angle = torch.tensor([0.0, 0.0, 0.1, 0.9, 0.2, 0.5, 0.2])
    unit = torch.stack([angle.cos(), angle.sin()], 1)
    settings = SelectionSettings(augment="hop2", candidates=2)
    pairs = candidate_pairs(hub, unit, torch.full((7,), 3), settings)
    of_first = [a for a, b in pairs.tolist() if b == 1]
    assert of_first == [2, 4]  # 4 and 6 are equal: the lower index
    assert (np.bincount(pairs[:, 1], minlength=7) == [0, 2, 2, 2, 2, 2, 2]).all()
    triangle = csr_of([(0, 1), (1, 2), (0, 2), (2, 3)], 4)  # what is linked is no candidate
    pairs = candidate_pairs(triangle, unit[:4], torch.full((4,), 4), settings)
    assert set(map(tuple, pairs.tolist())) == {(3, 0), (3, 1), (0, 3), (1, 3)}


@pytest.mark.parametrize(
    ("length", "weight", "k"), [(4, 0.7, 10), (5, 0.5, 5), (20, 0.5, 5), (21, 0.3, 3)], ids=lambda value: str(value)
)
def test_a_text_of_exactly_the_bound_is_of_ordinary_length(length, weight, k):
    weights, kept = adaptive_weights(np.array([length]), LengthBounds(5, 20), SelectionSettings())
    assert weights.item() == pytest.approx(weight)
    assert kept.item() == k


def test_node_0_is_kept_as_any_other_and_the_threshold_itself_passes():
    csr = csr_of([(0, 1), (1, 2)], 3)
    kept = pick(csr, torch.ones(4), torch.ones(3, 1), 0.5, 2)
    assert kept.neighbours.tolist() == [[1, -1], [0, 2], [1, -1]]
    assert kept.graph().sources.tolist() == [1, 0, 2, 1]
    assert kept.edges().tolist() == [[1, 0], [0, 1], [2, 1], [1, 2]]
    assert (pick(csr, torch.ones(4), torch.ones(3, 1), 0.5, 2, threshold=1.0).neighbours == kept.neighbours).all()
    assert (pick(csr, torch.ones(4), torch.ones(3, 1), 0.5, 2, threshold=1.01).neighbours == -1).all()


def test_attention_is_taken_against_the_largest_of_each_node_so_that_hubs_are_not_flat():
    csr = csr_of([(0, i) for i in range(1, 51)], 51)
    attention = torch.full((len(csr.sources),), 0.02)
    attention[50:] = 1.0
    attention[7] = 0.03  # of node 8, a little above the other forty-nine
    kept = pick(csr, attention, torch.ones(51, 1), 0.5, 2)
    assert kept.neighbours[0].tolist() == [8, 1]
    torch.testing.assert_close(kept.scores[0], torch.tensor([1.0, 0.5 * 2 / 3 + 0.5]))
    torch.testing.assert_close(kept.scores[1, 0], torch.tensor(1.0))


def test_nearest_is_the_dense_ranking_whatever_the_chunk():
    unit = unit_rows(torch.randn(60, 5, generator=torch.Generator().manual_seed(0)))
    dense = unit @ unit.T
    dense.fill_diagonal_(-2)
    wanted = dense.argsort(1, descending=True)[:, :7]
    for chunk in (7, 1000):
        place, value = nearest(unit, torch.arange(60), 7, chunk=chunk)
        assert torch.equal(place, wanted)
        torch.testing.assert_close(value, dense.gather(1, wanted))
    assert nearest(torch.ones(4, 1), torch.tensor([1]), 9)[0].tolist() == [[0, 2, 3]]


def test_duplicates_share_a_group_and_empty_texts_are_alone():
    x = torch.tensor([[1.0, 0], [0, 0], [1, 0.01], [0, 1], [0, 0]])
    groups = duplicate_groups(unit_rows(x), chunk=2).tolist()
    assert groups[0] == groups[2]
    assert len(set(groups)) == 4


def test_noise_floor_is_a_percentile_of_random_pairs():
    unit = unit_rows(torch.randn(300, 8, generator=torch.Generator().manual_seed(0)))
    cosine = (unit @ unit.T)[~torch.eye(300, dtype=torch.bool)]
    assert noise_floor(unit) == pytest.approx(float(cosine.quantile(0.75)), abs=0.02)


# Keywords and prompts


def test_the_rare_word_a_neighbourhood_shares_is_its_keyword_and_own_words_come_last():
    texts = ["alpha beta gamma", "zebra alpha delta", "zebra beta epsilon", "delta epsilon gamma", "alpha beta delta"]
    keywords = Keywords.fit(texts)
    neighbours = torch.tensor([[1, 2]] + [[-1, -1]] * 4)
    scores = torch.tensor([[1.0, 1.0]] + [[0.0, 0.0]] * 4)
    found = neighbourhood_keywords(keywords.weights(texts), keywords, neighbours, scores)
    assert found[0][0] == "zebra"
    own = [found[0].index(word) for word in ("alpha", "beta")]
    assert min(own) > max(found[0].index(word) for word in ("delta", "epsilon", "zebra"))
    assert found[1] == []
    again = Keywords.from_dict(keywords.to_dict())
    np.testing.assert_allclose(again.weights(texts).toarray(), keywords.weights(texts).toarray(), atol=1e-5)


def test_texts_without_a_shared_word_have_no_keywords():
    keywords = Keywords.fit(["one", "two three", ""])
    assert neighbourhood_keywords(keywords.weights(["one"]), keywords, torch.tensor([[0]]), torch.ones(1, 1)) == [[]]


def test_prompts_name_what_is_chosen_and_never_the_label(graph):
    n = len(graph)
    neighbours = torch.full((n, 6), -1)
    neighbours[0, :6] = torch.arange(1, 7)
    words = [["robin"] for _ in range(n)]
    bounds = Bounds(short=0, long=99, low=0, high=99)
    prompts = build_prompts(graph, neighbours, words, bounds)
    assert 'Article "title 0". Content: ' in prompts[0]
    assert "Closest related items: title 1; title 2; title 3." in prompts[0]
    assert "Closest" not in prompts[1]
    assert prompts[0].endswith("Question: which of birds, ships, music fits best?")
    swapped = dataclasses.replace(graph, labels=(graph.labels + 1) % 3)
    assert build_prompts(swapped, neighbours, words, bounds) == prompts
    many = build_prompts(graph, neighbours, words, Bounds(short=0, long=99, low=0, high=1))[0]
    assert "high" in many
    assert "title 5;" not in many
    assert "title 5." in many
    short = build_prompts(graph, neighbours, words, Bounds(short=50, long=99, low=0, high=99))[0]
    assert short.index("Shared themes") < short.index("Content")
    long = dataclasses.replace(graph, texts=("word " * 500, *graph.texts[1:]))
    assert build_prompts(long, neighbours, words, bounds)[0].count("word") == 120


# Attention of the graph encoder


def test_attention_and_inference_are_those_of_the_library():
    from torch_geometric.nn import GATConv
    from torch_geometric.utils import scatter

    torch.manual_seed(0)
    encoder = GraphEncoder("gat", 12, 16, heads=4).eval()
    csr = csr_of(np.random.default_rng(0).integers(0, 30, (80, 2)), 31)  # node 30 is isolated
    csr = dataclasses.replace(csr, weights=np.random.default_rng(1).random(len(csr.sources)).astype(np.float32))
    x, block = torch.randn(31, 12), whole_block(csr)
    with torch.no_grad():
        dense = encoder(x, block.edge_index, block.edge_weight)
    torch.testing.assert_close(encoder.infer(x, block), dense, atol=1e-5, rtol=1e-5)
    layer = encoder.first
    assert isinstance(layer, GATConv)
    found = first_attention(layer, x, csr)
    ones = torch.ones(block.edge_index.shape[1], 1)
    _, (edges, alpha) = layer(x, block.edge_index, ones, return_attention_weights=True)
    mean, keep = alpha.mean(1).detach(), edges[0] != edges[1]
    mean = mean[keep]
    assert torch.equal(edges[0][keep], torch.from_numpy(csr.sources.astype(np.int64)))
    wanted = mean / scatter(mean, edges[1][keep], dim_size=31)[edges[1][keep]]
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)
    sums = torch.zeros(31).index_add(0, edges[1][keep], found)
    torch.testing.assert_close(sums[:30], torch.ones(30), atol=1e-5, rtol=1e-5)


# Sampler


def test_sampled_edges_are_edges_and_small_neighbourhoods_are_whole():
    rng = np.random.default_rng(0)
    csr = csr_of(rng.integers(0, 50, (200, 2)), 50)
    true = set(zip(csr.sources.tolist(), csr.targets().tolist()))
    block = sample_block(csr, np.array([3, 7, 11]), (4, 4), np.random.default_rng(1))
    nodes = block.nodes.tolist()
    assert nodes[:3] == [3, 7, 11]
    assert len(set(nodes)) == len(nodes)
    pairs = [(nodes[a], nodes[b]) for a, b in block.edge_index.T.tolist()]
    loops = [pair for pair in pairs if pair[0] == pair[1]]
    assert len(loops) == len(nodes)
    others = [pair for pair in pairs if pair[0] != pair[1]]
    assert set(others) <= true
    assert len(set(others)) == len(others)
    counts = np.bincount([b for _, b in others], minlength=50)
    assert all(counts[node] == min(4, csr.degree[node]) for node in nodes[:3])
    every = sample_block(csr, np.arange(50), (-1,), np.random.default_rng(0))
    assert every.edge_index.shape[1] == len(csr.sources) + 50


def test_sampling_is_uniform_without_replacement_and_seeded():
    csr = csr_of([(0, i) for i in range(1, 11)], 11)
    counts = np.zeros(11)
    for seed in range(2000):
        places, group = sample_neighbours(csr, np.array([0]), 3, np.random.default_rng(seed))
        drawn = csr.sources[places]
        assert len(set(drawn.tolist())) == 3
        assert (group == 0).all()
        counts[drawn] += 1
    # 2000 draws of 3 of 10: 600 each, standard deviation 20.5
    assert np.abs(counts[1:] - 600).max() < 90
    a, b = (sample_block(csr, np.array([0, 1]), (2, 2), np.random.default_rng(5)) for _ in range(2))
    assert torch.equal(a.edge_index, b.edge_index)


# Cross-modal attention and fusion


@pytest.fixture
def block():
    torch.manual_seed(0)
    return CrossModalBlock(16, 4)


def test_cross_attention_is_the_library_s_multihead_attention(block):
    torch.manual_seed(1)
    reference = torch.nn.MultiheadAttention(16, 4, batch_first=True)
    with torch.no_grad():
        reference.in_proj_weight.copy_(torch.cat([block.query.weight, block.key.weight, block.value.weight]))
        reference.in_proj_bias.copy_(torch.cat([block.query.bias, torch.randn(16), block.value.bias]))
        reference.out_proj.weight.copy_(block.out.weight)
        reference.out_proj.bias.copy_(block.out.bias)
    query, table, index = torch.randn(5, 16), torch.randn(9, 16), torch.randint(9, (5, 4))
    bias = torch.randn(5, 4)
    bias[0, 2:] = -torch.inf
    tokens = table[index]
    wanted, _ = reference(query[:, None], tokens, tokens, attn_mask=bias[:, None].repeat_interleave(4, 0))
    torch.testing.assert_close(block.attend(query, table, index, bias), wanted[:, 0], atol=1e-5, rtol=1e-5)


def test_without_neighbours_only_the_self_token_counts(block):
    query, own = torch.randn(3, 16), torch.randn(3, 16)
    index = torch.tensor([[0, 1, 2], [1, 0, 0], [2, 0, 1]])
    bias = torch.tensor([[0.0, -torch.inf, -torch.inf]] * 3)
    found = block(query, own, own, index, bias)
    hidden = block.norm(own + block.out(block.value(own)))
    torch.testing.assert_close(found, block.last_norm(hidden + block.feed(hidden)), atol=1e-5, rtol=1e-5)


def test_the_order_of_neighbours_does_not_matter_and_a_score_of_nothing_weighs_nothing():
    torch.manual_seed(0)
    fusion = Fusion(6, ModelConfig(width=16, heads=2, dropout=0.0)).eval()
    graph, x, prompts = torch.randn(8, 16), torch.randn(8, 6), torch.randn(2, 6)
    rows, near = torch.tensor([0, 4]), torch.tensor([[1, 2, 3], [5, 6, -1]])
    scores = torch.tensor([[0.9, 0.4, 0.2], [0.5, 0.3, 0.0]])
    with torch.no_grad():
        z = fusion(graph, x, rows, prompts, near, scores).z
        order = torch.tensor([2, 0, 1])
        again = fusion(graph, x, rows, prompts, near[:, order], scores[:, order]).z
        torch.testing.assert_close(z, again, atol=1e-5, rtol=1e-5)
        faint = torch.tensor([[0.9, 0.4, 0.0], [0.5, 0.3, 0.0]])
        gone = torch.tensor([[1, 2, -1], [5, 6, -1]])
        torch.testing.assert_close(
            fusion(graph, x, rows, prompts, near, faint).z,
            fusion(graph, x, rows, prompts, gone, faint).z,
            atol=1e-4,
            rtol=1e-3,
        )
        alone = fusion(graph, x, rows, prompts, torch.full((2, 3), -1), torch.zeros(2, 3)).z
    assert torch.isfinite(alone).all()
    assert not torch.allclose(z, alone, atol=1e-2)


def test_the_gate_opens_to_either_branch():
    fusion = Fusion(6, ModelConfig(width=16, heads=2))
    graph, text = torch.randn(3, 16), torch.randn(3, 16)
    with torch.no_grad():
        fusion.gate.weight.zero_()
        for bias, branch in ((50.0, graph), (-50.0, text), (0.0, (graph + text) / 2)):
            fusion.gate.bias.fill_(bias)
            torch.testing.assert_close(fusion.fuse(graph, text), branch)
    only = Fusion(6, ModelConfig(width=16, heads=2, fusion="graph"))
    assert torch.equal(only.fuse(graph, text), graph)


def test_link_scores_do_not_depend_on_the_order_of_a_pair():
    head, a, b = LinkHead(8), torch.randn(4, 8), torch.randn(4, 8)
    torch.testing.assert_close(head(a, b), head(b, a))


def test_zero_shot_is_a_cosine_and_the_remembered_attention_does_not_learn():
    network = Network("promptgnn-sim", 6, 3, ModelConfig(width=16, heads=2))
    scores = network.zero_shot(torch.randn(5, 16), torch.randn(3, 6))
    assert scores.abs().max() <= 1 + 1e-6
    network.remember_attention()
    assert torch.equal(network.selector.lin.weight, network.graph.first.lin.weight)


# Losses


@pytest.mark.parametrize("b", [1, 2, 7])
def test_alignment_of_equal_orthogonal_rows_has_a_closed_form(b):
    rows = torch.eye(8, dtype=torch.float64)[:b].requires_grad_()
    wanted = math.log(1 + (b - 1) * math.exp(-1 / 0.07))
    assert alignment(rows, rows, torch.arange(b)).item() == pytest.approx(wanted, abs=1e-6)
    assert alignment(rows, rows, torch.arange(b), temperature=1.0).item() == pytest.approx(
        math.log(1 + (b - 1) / math.e), abs=1e-6
    )
    alignment(rows, rows.detach().roll(1, 1), torch.arange(b)).backward()
    assert torch.isfinite(rows.grad).all()


def test_alignment_is_the_dense_formula_with_queue_and_ids_taking_out_exactly_the_same_texts():
    torch.manual_seed(0)
    a, b = torch.randn(5, 8, requires_grad=True), torch.randn(5, 8, requires_grad=True)
    ids = torch.tensor([0, 1, 2, 2, 4])  # rows 2 and 3 have one text
    queue = FeatureQueue(8, 6)
    queue.push(torch.randn(6, 8), ids=torch.tensor([9, 1, 8, 2, 7, 6]))
    entries = queue.entries()
    keys = torch.cat([F.normalize(b, dim=1), entries.features])
    key_ids = torch.cat([ids, entries.ids])
    logits = F.normalize(a, dim=1) @ keys.T / 0.07
    out = (ids[:, None] == key_ids[None]) & ~F.pad(torch.eye(5, dtype=torch.bool), (0, 6))
    assert out.sum() == 2 + 1 + 2
    wanted = F.cross_entropy(logits.masked_fill(out, -torch.inf), torch.arange(5))
    found = directed_alignment(a, b, ids, queue=entries)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    for mine, theirs in zip(torch.autograd.grad(found, [a, b]), torch.autograd.grad(wanted, [a, b])):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)


def test_each_direction_of_an_alignment_meets_the_queue_of_the_other_view():
    a, b, ids = torch.randn(4, 8), torch.randn(4, 8), torch.arange(4)
    queues = []
    for _ in range(2):
        queue = FeatureQueue(8, 5)
        queue.push(torch.randn(5, 8), ids=torch.arange(10, 15))
        queues.append(queue.entries())
    there, back = directed_alignment(a, b, ids, queue=queues[1]), directed_alignment(b, a, ids, queue=queues[0])
    torch.testing.assert_close(alignment(a, b, ids, queue_a=queues[0], queue_b=queues[1]), (there + back) / 2)
    plain = (directed_alignment(a, b, ids) + directed_alignment(b, a, ids)) / 2
    torch.testing.assert_close(alignment(a, b, ids), plain)


def test_task_losses_are_the_textbook_ones_and_unlabelled_rows_do_not_count():
    logits, labels = torch.randn(4, 3), torch.tensor([0, -1, 2, -1])
    wanted = F.cross_entropy(logits[[0, 2]], labels[[0, 2]], label_smoothing=0.1)
    torch.testing.assert_close(classification(logits, labels), wanted)
    assert classification(logits, torch.full((4,), -1)).item() == 0
    scores, joined = torch.tensor([2.0, -1.0]), torch.tensor([1.0, 0.0])
    assert link_loss(scores, joined).item() == pytest.approx((math.log1p(math.exp(-2)) + math.log1p(math.exp(-1))) / 2)
