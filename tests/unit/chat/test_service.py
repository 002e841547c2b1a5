from __future__ import annotations

from maestrale.chat.service import choice_seed


def test_choice_seeds() -> None:
    assert choice_seed(7, 0) == 7
    seeds = {choice_seed(seed, choice) for seed in range(20) for choice in range(20)}
    assert len(seeds) == 400
    assert all(0 <= seed < 2**64 for seed in seeds)
    assert choice_seed(7, 3) == choice_seed(7, 3)
