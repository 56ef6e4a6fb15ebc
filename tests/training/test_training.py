"""The training loop: positions, batches, schedule, and a run of a few steps."""

import json
import random
from dataclasses import fields
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from tinymodel.batches import Batches, stretched_positions
from tinymodel.checkpoint import Shape
from tinymodel.network import LanguageModel
from tinymodel.tokenizer import load_tokenizer
from tinymodel.trainer import STAGES, Plan, Stage, train

from tenter.runtime.models import tiny_path


def test_stretched_positions_rise_and_stay_in_range() -> None:
    r = random.Random(1)
    for _ in range(50):
        positions = stretched_positions(r, 1024, 4096)
        assert (positions.diff() >= 1).all()
        assert 1023 <= int(positions[-1]) < 4096


def test_batches_repeat_for_a_seed() -> None:
    tokenizer = load_tokenizer(tiny_path())
    first, second = (Batches(tokenizer, 3, 1024, 4096).draw(256) for _ in range(2))
    assert torch.equal(first.ids, second.ids)
    assert first.ids.shape == (4, 256)
    assert torch.equal(first.ids[:, 1:], first.targets[:, :-1])
    assert 0 < int((first.weights > 0).sum()) < first.weights.numel()


def test_stages_lengthen_rows_and_lower_the_rate() -> None:
    for stage in STAGES:
        rows = [stage.row_tokens(step) for step in range(stage.steps)]
        assert rows == sorted(rows)
    assert rows[-1] == 4096
    first, last = STAGES[0], STAGES[-1]
    assert first.rate_factor(0) < first.rate_factor(400) == 1.0
    assert last.rate_factor(100) > last.rate_factor(last.steps - 1) > 0


def test_scaled_stages_keep_their_course() -> None:
    for stage in STAGES:
        short = stage.scaled(0.1)
        assert short.steps == stage.steps // 10
        assert short.row_tokens(short.steps - 1) == stage.row_tokens(stage.steps - 1)


def test_the_network_computes_what_transformers_computes() -> None:
    """Loss of the training network equals that of Qwen3ForCausalLM on the shipped weights."""
    transformers = pytest.importorskip("transformers")
    reference = transformers.AutoModelForCausalLM.from_pretrained(tiny_path(), dtype=torch.float32)
    config = json.loads((tiny_path() / "config.json").read_text())
    network = LanguageModel(Shape(**{f.name: config[f.name] for f in fields(Shape)}))
    weights = {name: w for name, w in reference.state_dict().items() if name != "lm_head.weight"}
    network.load_state_dict(weights)
    batch = Batches(load_tokenizer(tiny_path()), 3, 1100, 1100).draw(1100)
    with torch.inference_mode():
        ours = network(batch.ids, batch.positions, batch.targets, batch.weights)
        logits = reference(input_ids=batch.ids, position_ids=batch.positions[None]).logits
    losses = torch.nn.functional.cross_entropy(logits[0], batch.targets[0], reduction="none")
    expected = (losses * batch.weights[0]).sum() / batch.weights.sum()
    assert float(ours) == pytest.approx(float(expected), rel=0.02)


@pytest.mark.slow
def test_a_short_run_lowers_the_loss(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    stages = (Stage(8, ((0.0, 128),), ((0.0, 1.0), (1.0, 1.0))), STAGES[1].scaled(0.005))
    size_bytes = train(Plan(tmp_path, stages, batch_tokens=1024, report_steps=4))
    assert 0 < size_bytes <= 8 * 1024 * 1024
    losses = [
        float(line.split("loss ")[1].split()[0]) for line in capfd.readouterr().out.splitlines()
    ]
    assert losses[-1] < losses[0]
    assert {file.name for file in tmp_path.iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
