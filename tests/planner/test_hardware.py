"""The roofline: what bounds a step, what sharing a model over GPUs costs, what fits."""

from dataclasses import replace

import pytest

from tenter.planner.hardware import (
    HARDWARE,
    MODELS,
    dollars,
    kv_capacity_tokens,
    prefill_seconds,
    preset,
    step_seconds,
    swap_seconds,
    tensor_parallel,
)

LLAMA = MODELS["llama-3.1-8b"]


def test_a_decoding_step_reads_the_weights_and_the_context() -> None:
    gpu = replace(preset("h100"), overhead_s=0.0)
    read_bytes = 16.06e9 + 64 * 1000 * 131_072
    assert step_seconds(gpu, LLAMA, 64, 64_000) == pytest.approx(read_bytes / (3.35e12 * 0.72))


def test_a_prefill_step_computes_and_long_prompts_attend() -> None:
    gpu = replace(preset("h100"), overhead_s=0.0)
    rate = 989.5e12 * 0.65
    linear_s = 2 * 8.03e9 * 2048 / rate
    assert step_seconds(gpu, LLAMA, 2048, 0) == pytest.approx(linear_s)
    pairs = 2048 * (100_000 + 1024)
    attended = step_seconds(gpu, LLAMA, 2048, 100_000, pairs)
    assert attended == pytest.approx(linear_s + 4 * 32 * 4096 * pairs / rate)
    assert attended > 2 * linear_s


def test_prefill_time_grows_faster_than_the_prompt() -> None:
    gpu = preset("h100")
    once = prefill_seconds(gpu, LLAMA, 30_000)
    assert prefill_seconds(gpu, LLAMA, 60_000) > 2.1 * once
    rest = prefill_seconds(gpu, LLAMA, 30_000, cached=30_000)
    assert rest == pytest.approx(prefill_seconds(gpu, LLAMA, 60_000) - once, rel=0.02)
    assert prefill_seconds(gpu, LLAMA, 0) == 0.0


def test_more_gpus_are_faster_but_pay_for_talking() -> None:
    one, four = preset("h100"), preset("4xh100")
    assert four == tensor_parallel(one, 4) and four.gpus == 4
    for step in ((1, 10_000), (2048, 0)):
        quick, slow = step_seconds(four, LLAMA, *step), step_seconds(one, LLAMA, *step)
        assert slow / 4 < quick < slow
    reduce_s = 2 * 32 * (10e-6 + 2 * 3 / 4 * 1000 * 4096 * 2 / 450e9)
    silent = replace(four, link_latency_s=0.0, link_bytes_per_s=float("inf"))
    paid_s = step_seconds(four, LLAMA, 1000, 0) - step_seconds(silent, LLAMA, 1000, 0)
    assert paid_s == pytest.approx(reduce_s)


def test_a_mixture_reads_the_experts_that_its_tokens_choose() -> None:
    model = MODELS["gpt-oss-20b"]
    per_parameter = model.weight_bytes / model.parameters
    assert model.read_bytes(1) == pytest.approx(model.active * per_parameter)
    assert model.read_bytes(8) < model.read_bytes(64) < model.weight_bytes
    assert model.read_bytes(10_000) == pytest.approx(model.weight_bytes)
    assert LLAMA.read_bytes(1) == LLAMA.weight_bytes


@pytest.mark.parametrize(
    ("name", "kv_bytes"),
    [
        ("llama-3.1-8b", 131_072),
        ("llama-3.1-70b", 327_680),
        ("qwen3-8b", 147_456),
        ("qwen3-32b", 262_144),
        ("gpt-oss-20b", 49_152),
        ("llama-2-7b", 524_288),
    ],
)
def test_kv_per_token_counts_key_and_value_heads(name: str, kv_bytes: int) -> None:
    assert MODELS[name].kv_bytes_per_token == kv_bytes


def test_capacity_is_what_the_weights_leave() -> None:
    large = MODELS["llama-3.1-70b"]
    assert kv_capacity_tokens(preset("h100"), large) == 0
    four = kv_capacity_tokens(preset("4xh100"), large)
    assert four == int((4 * 80e9 * 0.9 - 141.2e9) / 327_680)
    assert kv_capacity_tokens(preset("h200"), LLAMA) > kv_capacity_tokens(preset("h100"), LLAMA)


def test_the_host_tier_beats_computing_again_where_prompts_are_long() -> None:
    gpu = preset("h100")
    assert swap_seconds(gpu, LLAMA, 1000) == pytest.approx(131_072 * 1000 / 55e9)
    assert swap_seconds(gpu, LLAMA, 50_000) < prefill_seconds(gpu, LLAMA, 50_000)
    assert swap_seconds(preset("2xh100"), LLAMA, 1000) < swap_seconds(gpu, LLAMA, 1000)


def test_cost_counts_every_gpu() -> None:
    assert dollars(preset("4xh100"), 3600) == pytest.approx(4 * dollars(preset("h100"), 3600))


def test_every_preset_is_whole() -> None:
    for name, gpu in HARDWARE.items():
        assert gpu.name == name and gpu.dollars_per_hour > 0
    for name, model in MODELS.items():
        assert model.name == name and 0 < model.active <= model.parameters
        assert step_seconds(preset("8xh200"), model, 100, 10_000) > 0


@pytest.mark.parametrize("name", ["tpu", "0xh100", "x100", "h100x4", ""])
def test_unknown_hardware_lists_the_known(name: str) -> None:
    with pytest.raises(ValueError, match="there is a100, h100, h200, l40s, and 2xh100"):
        preset(name)
