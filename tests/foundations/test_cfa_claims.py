"""The claims and the speed can be measured; what they find is no test."""

import math

import torch
from cl_bench.claims import cfa
from cl_bench.speed import cfa as speed


def test_every_direction_is_measured_on_the_sample_images(monkeypatch):
    torch.set_num_threads(1)
    train, test, outside, views = cfa._data(None)
    assert (len(train), len(test), len(outside)) == (1442, 355, 120)
    # Every fifth or tenth image is enough to go through all of it.
    few = train.take(range(0, len(train), 10)), test.take(range(0, len(test), 5)), outside.take(range(0, 120, 10))
    monkeypatch.setattr(cfa, "_data", lambda _: (*few, views))
    results = [claim.to_dict() for claim in cfa.claims(range(1), None, simulated_steps=2, steps=2)]
    assert len({result["name"] for result in results}) == len(results)
    for direction in ("simulated", "expressiveness", "robustness", "interpretability", "uncertainty"):
        assert any(result["name"].startswith(f"cfa: {direction}") for result in results)
    for result in results:
        assert all(math.isfinite(value) for arm in result["arms"].values() for value in arm["values"])
    assert sum(result["gate"] for result in results) >= 8


def test_the_speed_is_measured_on_the_same_values():
    spectral = speed._spectral_race(1, count=64, factors=8).to_dict()
    assert float(spectral["notes"].split()[-1]) < 1e-4
    for entry in (spectral, speed._step_race("cnfa", "tiny", 2, 1).to_dict()):
        assert entry["ratio"] > 0
        assert entry["ours_seconds"] > 0
