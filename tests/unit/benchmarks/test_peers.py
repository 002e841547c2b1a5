"""scripts/bench-peers: ratios, limits and failures in its report; its reading of pauses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.peers import quality, questions
from benchmarks.peers.cells import _gaps
from benchmarks.peers.floors import ahead, reached
from benchmarks.peers.limits import model_size
from benchmarks.peers.peers import PEERS
from benchmarks.peers.regression import verdict
from benchmarks.peers.report import SPEED, as_json, as_markdown, ratio
from benchmarks.peers.rounds import FULL, Found
from benchmarks.peers.token_ids import job
from maestrale.bench.client import Exchange

LIMITS = {
    "read_bandwidth": 10e9,
    "copy_bandwidth": 12e9,
    "fp32_ops": 100e9,
    "int8_ops": 200e9,
    "weights": 100e6,
    "head_weights": 20e6,
    "weight_bytes": 50e6,
}
FACTS = {
    "date": "2026-01-01 00:00 UTC",
    "command": "scripts/bench-peers",
    "rounds": 3,
    "cpu": "a processor",
    "cores": 2,
    "features": ["avx2"],
    "memory": 2**33,
    "system": "Linux",
    "load_before": 0.1,
}


def found() -> dict[str, Any]:

    everyone = {peer.key: Found(peer) for peer in PEERS}
    for speed in (90.0, 100.0, 120.0):
        everyone["ours"].add(
            {"tokens_per_second_1": speed, "article_ttft": 2.0, "article_tokens": 1300}
        )
        everyone["genai"].add({"tokens_per_second_1": speed / 2, "article_ttft": 4.0})
    everyone["vllm"].problems.append("not installed: there is no network")
    return everyone


def test_ratios_are_of_medians_and_above_one_where_ours_is_quicker() -> None:

    both = found()
    speed, *_, article = SPEED[:4]
    assert ratio(both["ours"], both["genai"], speed) == pytest.approx(2.0)
    assert ratio(both["ours"], both["genai"], article) == pytest.approx(2.0)
    assert ratio(both["ours"], both["vllm"], speed) is None


def test_the_page_has_medians_spread_limits_and_failures() -> None:

    page = as_markdown(found(), LIMITS, FACTS)
    assert "**100**<br>90.0 to 120" in page
    assert "there is no network" in page
    # 100 tok/s of 50 MB each are half of 10 GB/s.
    assert "| 50% |" in page
    ratios = page.partition("## Ratios")[2].splitlines()
    (row,) = (line for line in ratios if line.startswith("| OpenVINO GenAI"))
    assert row.split("|")[2].strip() == "2.00"
    assert row.count("|") == 7
    data = json.loads(as_json(found(), LIMITS, FACTS))
    assert data["peers"]["ours"]["medians"]["tokens_per_second_1"] == 100.0
    assert data["peers"]["ours"]["rounds"]["tokens_per_second_1"] == [90.0, 100.0, 120.0]
    assert data["limits"] == LIMITS


def test_every_row_of_speed_names_its_perplexity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quality, "FILE", tmp_path / "rounding.json")
    quality.FILE.write_text('{"Q4_1": {"exact": 14.6, "ours": 14.625, "llamacpp": 14.7}}')
    page = as_markdown(found(), LIMITS, FACTS)
    speed = page.partition("## Speed")[2].partition("## Everything else")[0]
    rows = [line.split("|") for line in speed.splitlines() if line.startswith("| ")]
    assert rows[0][2].strip() == "perplexity"
    shown = {row[1].partition(";")[0].strip(): row[2].strip() for row in rows[1:]}
    assert shown["maestrale"] == "14.62"
    assert shown["OpenVINO GenAI, no server, its defaults"] == "?"


def test_a_fallen_ratio_is_found() -> None:

    record = json.loads(as_json(found(), LIMITS, FACTS))
    is_kept, lines = verdict(found(), FACTS, record)
    assert is_kept
    assert "2 of 2 are kept" in lines[0]
    record["peers"]["ours"]["medians"]["tokens_per_second_1"] = 150.0  # ours was quicker once
    is_kept, (first, fallen) = verdict(found(), FACTS, record)
    assert not is_kept
    assert "1 of 2 are kept" in first
    assert fallen == "ours against genai, 1 stream, tok/s: 2.00, recorded 3.00"


def test_a_record_of_another_processor_is_no_measure() -> None:

    record = json.loads(as_json(found(), LIMITS, FACTS))
    record["peers"]["ours"]["medians"]["tokens_per_second_1"] = 150.0
    now = found()
    now["ours"].add({"json_ratio": 1.0})
    is_kept, lines = verdict(now, FACTS | {"features": ["avx2", "avx_vnni"]}, record)
    assert is_kept
    assert "another processor (avx2)" in lines[0]
    now["ours"].numbers["json_ratio"] = [2.0]
    is_kept, (_, missed) = verdict(now, FACTS, None)
    assert not is_kept
    assert missed.endswith("time per token: 2.00 (≤ 1.10 asked)")


def test_nothing_compared_is_no_verdict_in_favour() -> None:

    is_kept, lines = verdict({}, FACTS, None)
    assert not is_kept
    assert "nothing could be compared" in lines[0]


def test_pauses_are_those_that_touch_the_disturbance() -> None:

    answers = [Exchange(0.0, times=[1.0, 1.1, 1.2, 3.0, 3.1]), Exchange(0.0, times=[5.0, 5.2])]
    assert sorted(_gaps(answers, 1.5, 2.0)) == pytest.approx([1.8])
    assert sorted(_gaps(answers, 0.0, 1.5)) == pytest.approx([0.1, 0.1])


def test_questions_of_two_series_have_none_in_common() -> None:

    asked = [questions.short(32, series=32), questions.short(8, series=8), questions.short(1, 1)]
    texts = [json.dumps(one) for series in asked for one in series]
    assert len(set(texts)) == 41
    assert questions.long(1)[0]["content"][:9] != questions.long(2)[0]["content"][:9]
    assert questions.structured()[1]["type"] == "json_schema"
    assert json.dumps(questions.other_schema(1)) != json.dumps(questions.other_schema(2))


def test_floors_are_judged_by_the_medians_and_the_best_of_llama_cpp() -> None:

    both = found()
    both["llamacpp-q4_1"].add({"tokens_per_second_1": 120.0, "article_ttft": 8.0})
    both["llamacpp-q4_0"].add({"tokens_per_second_1": 110.0, "article_ttft": 2.5})
    both["ours"].add({"cold_start": 2.4})
    rows = {row.what: row for row in reached(both, 19_000.0)}

    same = rows["1 stream, against llama.cpp on the same GGUF"]
    assert same.value == pytest.approx(100 / 120)
    assert same.cells[1:] == ("≥ 1.20", "0.83", "**no**")
    best = rows["article TTFT, against llama.cpp's best row"]
    assert best.value == pytest.approx(2.0 / 2.5)
    assert best.verdict == "**no**"
    assert rows["start to first token, s"].verdict == "**no**"
    assert rows["8 streams, against vLLM's CPU build"].verdict == "not measured"
    assert rows["front end alone: tokens/s streamed to 128 clients"].cells[1:] == (
        *("≥ 20,000", "19,000"),
        "**no**",
    )
    assert ahead(both) == (["1 stream (0.83)"], 2)


def test_an_earlier_commit_has_floors_where_it_was_measured_and_is_no_peer() -> None:

    both = found()
    both["before"].add({"tokens_per_second_1": 80.0})
    rows = {row.what: row for row in reached(both)}
    row = rows["1 stream, against the earlier commit"]
    assert row.cells[1:] == ("≥ 1.20", "1.25", "yes")
    assert ahead(both) == ([], 2)
    del both["before"]
    assert not any("earlier commit" in row.what for row in reached(both))


def test_slow_peers_run_fewer_rounds_and_ours_is_disturbed_in_each() -> None:

    peers = {peer.key: peer for peer in PEERS}
    assert FULL.rounds_of(peers["ours"]) == FULL.rounds == 5
    assert FULL.rounds_of(peers["vllm"]) < FULL.rounds
    assert all(FULL.is_disturbed(peers["ours"], number) for number in range(FULL.rounds))
    assert not FULL.is_disturbed(peers["llamacpp-q4_1"], 1)
    assert not FULL.is_disturbed(peers["vllm"], 0)


def test_an_embedding_that_is_only_looked_up_is_no_weight_of_a_product(tmp_path: Path) -> None:

    from tiny_mistral import TINY, write_mistral

    size = model_size(write_mistral(tmp_path / "tiny.gguf", TINY))
    hidden, mlp, kv, vocab = 64, 128, 32, 32_000
    layer = 2 * hidden * hidden + 2 * kv * hidden + 3 * mlp * hidden
    assert size.head == vocab * hidden
    assert size.weights == 2 * layer + size.head
    # f16 is packed as 34 bytes for 32 values; norms are float32.
    assert size.bytes == size.weights // 32 * 34 + 4 * 5 * hidden
    assert size.everything == size.bytes + size.head // 32 * 34


def test_a_follow_up_is_what_comes_behind_the_answer() -> None:

    from maestrale.config.paths import default_cache_dir
    from maestrale.config.settings import BUNDLED_MODEL
    from maestrale.models.resolve import prepare
    from maestrale.prompt.encode import encoder_for

    folder = prepare(BUNDLED_MODEL, default_cache_dir(), lambda *_: None)
    told = job(folder, [(8, 4)], 1000)
    decoded = encoder_for(folder).decode(told["follow_up"])
    assert questions.FOLLOW_UP in decoded
    assert "Reader" not in decoded
    ((count, tokens, batches),) = told["streams"]
    assert (count, tokens, [len(batch) for batch in batches]) == (8, 4, [8])
    assert len(told["article"]) > 1000
