"""Which sites take part: by fraction, at least so many of each domain, by seed and by name."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from fedfm.config import SamplingConfig
from fedfm.federation.sampling import sample_sites


def sampling(fraction: float, minimum: int = 1) -> SamplingConfig:
    return SamplingConfig.model_validate({"fraction": fraction, "per-domain-minimum": minimum})


def sites(**counts: int) -> dict[str, str]:
    return {f"{domain}-{n:02d}": domain for domain, count in counts.items() for n in range(count)}


federations = st.dictionaries(st.sampled_from(["medical", "finance", "ner", "law"]), st.integers(1, 12), min_size=1)


@settings(max_examples=100)
@given(counts=federations, fraction=st.floats(0.01, 1), minimum=st.integers(0, 4), seed=st.integers(0, 99))
def test_of_each_domain_the_fraction_and_at_least_the_minimum(counts, fraction, minimum, seed):
    everyone = sites(**counts)
    chosen = sample_sites(everyone, sampling(fraction, minimum), seed, 3)
    assert chosen == sorted(set(chosen))
    assert set(chosen) <= set(everyone)
    wanted = {d: max(int(fraction * n + 0.5), min(minimum, n)) for d, n in counts.items()}
    found = {d: sum(everyone[name] == d for name in chosen) for d in counts}
    assert found == wanted or (not any(wanted.values()) and len(chosen) == 1)
    assert chosen == sample_sites(dict(reversed(everyone.items())), sampling(fraction, minimum), seed, 3)


def test_golden_counts():
    """0.5 of 3 rounds up to 2, 0.5 of 4 is 2, 0.1 of 2 is 0 and the minimum makes it 1; 9 of 2 are 2."""
    everyone = sites(a=3, b=4, c=2)
    assert [name[0] for name in sample_sites(everyone, sampling(0.5), 0, 1)] == ["a", "a", "b", "b", "c"]
    assert [name[0] for name in sample_sites(everyone, sampling(0.1), 0, 1)] == ["a", "b", "c"]
    assert len(sample_sites(sites(a=2), sampling(0.1, 9), 0, 1)) == 2


def test_everybody_when_the_fraction_is_one():
    everyone = sites(a=3, b=5)
    assert sample_sites(everyone, sampling(1.0), 4, 2) == sorted(everyone)


def test_one_domain_draws_without_regard_to_another():
    alone, beside = sites(a=10), sites(a=10, b=4, c=7)
    for number in range(1, 6):
        chosen = sample_sites(beside, sampling(0.4), 5, number)
        assert [name for name in chosen if name.startswith("a")] == sample_sites(alone, sampling(0.4), 5, number)


def test_seed_and_round_change_the_draw_and_in_time_everybody_comes():
    everyone = sites(a=10)
    by_round = [tuple(sample_sites(everyone, sampling(0.3), 0, number)) for number in range(1, 31)]
    assert len(set(by_round)) > 15
    assert {name for chosen in by_round for name in chosen} == set(everyone)
    assert by_round != [tuple(sample_sites(everyone, sampling(0.3), 1, number)) for number in range(1, 31)]
