"""What is given to vLLM: settings and requests as plain data, without vLLM itself.

What vLLM makes of them is tested with vLLM: scripts/test-vllm.
"""

from __future__ import annotations

from typing import Any

import pytest

from maestrale.engines.base import (
    Constraint,
    EngineConfig,
    GenerationRequest,
    ReservedGpus,
    Sampling,
)
from maestrale.engines.registry import build_engine
from maestrale.engines.vllm.arguments import engine_arguments
from maestrale.engines.vllm.environment import actor_environment
from maestrale.engines.vllm.parameters import FORCED, sampling_parameters
from maestrale.engines.vllm.pooling import PooledTask
from maestrale.errors import EngineError
from maestrale.models.prepared import PreparedModel

EOS = (2, 7)


def request(**fields: Any) -> GenerationRequest:
    whole = {"request_id": "r", "prompt": (1, 2, 3), "max_tokens": 9, "seed": 5}
    return GenerationRequest(**{**whole, **fields})


def parameters(**fields: Any) -> dict[str, Any]:
    return sampling_parameters(request(**fields), eos_token_ids=EOS)


class TestParameters:
    def test_every_field_of_sampling_arrives(self) -> None:
        sampling = Sampling(
            temperature=0.3,
            top_p=0.9,
            top_k=40,
            min_p=0.05,
            presence_penalty=0.1,
            frequency_penalty=0.2,
            repetition_penalty=1.3,
            logit_bias=((4, -100.0), (5, 2.5)),
        )
        given = parameters(sampling=sampling)
        for name in Sampling.__struct_fields__:
            expected = getattr(sampling, name)
            assert given[name] == (dict(expected) if name == "logit_bias" else expected), name

    def test_lengths_seed_and_logprobs_arrive(self) -> None:
        given = parameters(min_tokens=3, logprobs=4, prompt_logprobs=2, seed=2**64 + 11)
        assert given["prompt_logprobs"] == 2
        assert parameters(prompt_logprobs=0, max_tokens=0)["max_tokens"] == 1
        assert (given["max_tokens"], given["min_tokens"]) == (9, 3)
        assert (given["logprobs"], given["seed"]) == (4, 11)
        assert parameters(min_tokens=20)["min_tokens"] == 9

    def test_only_the_ids_of_the_request_end_it(self) -> None:
        given = parameters(stop_token_ids=(8, 8, 3))
        assert given["ignore_eos"] is True
        assert given["stop_token_ids"] == [8, 3]

    def test_a_constraint_may_also_end_at_the_models_own_ids(self) -> None:
        given = parameters(constraint=Constraint("regex", "a+"), stop_token_ids=(8, 2))
        assert given["stop_token_ids"] == [8, 2, 7]

    def test_forced_tokens_travel_beside_and_nothing_where_there_are_none(self) -> None:
        assert parameters(forced=(6, 6, 1))["extra_args"] == {FORCED: [6, 6, 1]}
        assert parameters()["extra_args"] is None

    def test_no_text_is_made_of_the_tokens(self) -> None:
        assert parameters()["detokenize"] is False


class TestArguments:
    @pytest.fixture
    def prepared(self) -> PreparedModel:
        return PreparedModel(
            name="m",
            context_length=8192,
            vocab_size=10,
            eos_token_ids=EOS,
            tokenizer_kind="hf",
            tokenizer_file="tokenizer.json",
            weights_digest="d",
        )

    def given(self, prepared: PreparedModel, *, cpu: bool = False, **fields: Any) -> dict[str, Any]:
        config = EngineConfig(engine="vllm", model_dir="/m", **fields)
        return engine_arguments(config, prepared, cpu=cpu)

    def test_what_is_not_set_is_left_to_vllm(self, prepared: PreparedModel) -> None:
        given = self.given(prepared)
        assert given["max_model_len"] == -1
        absent = ("max_num_seqs", "max_num_batched_tokens", "kv_cache_memory_bytes", "dtype")
        assert not given.keys() & set(absent)

    def test_settings_arrive_as_their_types(self, prepared: PreparedModel) -> None:
        options = {
            "tensor_parallel_size": "2",
            "pipeline_parallel_size": "3",
            "quantization": "awq",
            "gpu_memory_utilization": "0.8",
            "enforce_eager": "True",
            "dtype": "half",
        }
        given = self.given(prepared, options=options, max_model_len=4096, max_num_seqs=9)
        assert (
            given.items()
            >= {
                "tensor_parallel_size": 2,
                "pipeline_parallel_size": 3,
                "quantization": "awq",
                "gpu_memory_utilization": 0.8,
                "enforce_eager": True,
                "dtype": "half",
                "max_model_len": 4096,
                "max_num_seqs": 9,
            }.items()
        )

    @pytest.mark.parametrize("sizes", [("2", "1"), ("1", "2"), ("2", "2")])
    def test_several_gpus_are_processes_on_one_node_and_actors_on_several(
        self, prepared: PreparedModel, sizes: tuple[str, str]
    ) -> None:
        options = dict(zip(("tensor_parallel_size", "pipeline_parallel_size"), sizes, strict=True))
        backend = "distributed_executor_backend"
        assert self.given(prepared, options=options)[backend] == "mp"
        reserved = ReservedGpus(address="10.0.0.1:6379", group="00", bundles=({"GPU": 1.0},) * 4)
        assert self.given(prepared, options=options, reserved=reserved)[backend] == "ray"

    def test_embeddings_take_the_pooling_runner_without_what_is_for_logits(
        self, prepared: PreparedModel
    ) -> None:
        config = EngineConfig(engine="vllm", model_dir="/m")
        pooling = PooledTask("MEAN").arguments()
        given = engine_arguments(config, prepared, cpu=False, pooling=pooling)
        assert (given["runner"], given["convert"]) == ("pooling", "embed")
        assert "logits_processors" not in given
        # Whether there is a prefix cache is left to vLLM, unless there shall be none.
        assert "enable_prefix_caching" not in given
        config = EngineConfig(engine="vllm", model_dir="/m", enable_prefix_caching=False)
        given = engine_arguments(config, prepared, cpu=False, pooling=pooling)
        assert given["enable_prefix_caching"] is False
        assert not self.given(prepared).keys() & {"runner", "convert"}

    def test_one_gpu_is_left_to_vllm(self, prepared: PreparedModel) -> None:
        given = self.given(prepared, options={"tensor_parallel_size": "1"})
        assert "distributed_executor_backend" not in given

    def test_no_code_of_the_model_is_run_and_no_pickle_read(self, prepared: PreparedModel) -> None:
        given = self.given(prepared)
        assert (given["trust_remote_code"], given["load_format"]) == (False, "safetensors")

    def test_the_cpu_build_computes_prompts_whole(self, prepared: PreparedModel) -> None:
        given = self.given(prepared, cpu=True)
        assert (given["max_num_batched_tokens"], given["enable_chunked_prefill"]) == (8192, False)
        assert self.given(prepared, cpu=True, max_model_len=512)["max_num_batched_tokens"] == 512
        with pytest.raises(EngineError, match="--max-num-batched-tokens 100"):
            self.given(prepared, cpu=True, max_num_batched_tokens=100)

    @pytest.mark.parametrize(
        ("fields", "cpu", "named"),
        [
            ({"max_model_len": 8193}, False, "8192"),
            ({"threads": 2}, False, "--threads"),
            ({"options": {"gpu_memory_utilization": "0.5"}}, True, "--gpu-memory-utilization"),
            (
                {"options": {"gpu_memory_utilization": "0.5"}, "kv_cache_bytes": 1 << 30},
                False,
                "--kv-cache-memory",
            ),
            ({"options": {"text": "hello"}}, False, "text"),
        ],
    )
    def test_what_cannot_be_used_is_refused_by_name(
        self, prepared: PreparedModel, fields: dict[str, Any], cpu: bool, named: str
    ) -> None:
        with pytest.raises(EngineError, match=named):
            self.given(prepared, cpu=cpu, **fields)


def test_without_vllm_the_message_says_what_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EngineError, match="scripts/extra vllm"):
        build_engine(EngineConfig(engine="vllm", model_dir="/m"))


def test_actors_on_other_nodes_get_what_must_hold_there_and_no_folder_of_this_one() -> None:
    given = actor_environment(invariant=True)
    assert given["VLLM_BATCH_INVARIANT"] == "1"
    assert given["VLLM_USE_V2_MODEL_RUNNER"] == "0"
    assert given["HF_HUB_OFFLINE"] == "1"
    assert given["VLLM_RPC_BASE_PATH"] == "/tmp"
    assert "VLLM_BATCH_INVARIANT" not in actor_environment(invariant=False)
