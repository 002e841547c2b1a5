"""lm-eval on a task of a few lines: log-probabilities of answers by `echo`, and generation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

from script import MODEL
from serving import Server

LINES = [
    {"question": "The sky on a clear day is", "choices": [" blue", " qzx"], "gold": 0},
    {"question": "Two and two make", "choices": [" wvk", " four"], "gold": 1},
    {"question": "Cats and dogs are", "choices": [" animals", " zzq"], "gold": 0},
]
CHOOSING = """
task: maestrale_choosing
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: choices
doc_to_target: gold
target_delimiter: ""
metric_list: [{{metric: acc}}]
"""
WRITING = """
task: maestrale_writing
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
generation_kwargs: {{until: ["."], max_gen_toks: 8, temperature: 0}}
doc_to_text: "{{{{question}}}}"
doc_to_target: gold
metric_list: [{{metric: exact_match}}]
"""


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TaskManager:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    data = tmp_path / "lines.jsonl"
    data.write_text("\n".join(map(json.dumps, LINES)))
    for name, text in (("choosing", CHOOSING), ("writing", WRITING)):
        (tmp_path / f"{name}.yaml").write_text(text.format(data=data))
    return TaskManager(include_path=str(tmp_path), include_defaults=False)


def evaluated(server: Server, tasks: TaskManager, task: str, **more: Any) -> dict[str, Any]:
    arguments = {
        "base_url": f"{server.url}/v1/completions",
        "model": MODEL,
        "num_concurrent": 2,
        **more,
    }
    done: dict[str, Any] = simple_evaluate(
        model="local-completions",
        model_args=arguments,
        tasks=[task],
        task_manager=tasks,
        bootstrap_iters=0,
    )
    return done


def test_choosing_by_logprobs(bundled: Server, tasks: TaskManager) -> None:
    """The tokenizer is the server's: lm-eval finds it by itself, as vLLM has it."""
    done = evaluated(bundled, tasks, "maestrale_choosing")
    assert done["results"]["maestrale_choosing"]["acc,none"] == 1.0
    for sample in done["samples"]["maestrale_choosing"]:
        assert all(float(each[0][0]) < 0 for each in sample["resps"])


def test_writing(bundled: Server, tasks: TaskManager) -> None:
    done = evaluated(bundled, tasks, "maestrale_writing")
    for sample in done["samples"]["maestrale_writing"]:
        (said,) = sample["resps"][0]
        assert said.strip()
        assert "." not in said
