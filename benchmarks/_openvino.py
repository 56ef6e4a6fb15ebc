"""OpenVINO GenAI on the same prompts; runs in a virtual environment of its own (see engine.py).

    python _openvino.py MODEL_FOLDER IR_FOLDER

Exports the model once. Each line on stdin, {"prompts": [[token ids]], "new_tokens": n, "warm":
[token ids]}, is answered by a fresh pipeline, whose cache holds `warm` if that is not empty; the
CPU and wall seconds that it took are printed as a JSON line.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy
import openvino
import openvino_genai as genai


def export(folder: Path, ir: Path) -> None:
    """Convert a Hugging Face checkpoint to OpenVINO's form, once."""
    if not (ir / "openvino_model.xml").exists():
        program = Path(sys.executable).parent / "optimum-cli"
        task = ["--task", "text-generation-with-past", "--weight-format", "fp16"]
        command = [program, "export", "openvino", "--model", folder, *task, ir]
        subprocess.run(command, check=True, stdout=sys.stderr)


def pipeline(ir: Path) -> genai.ContinuousBatchingPipeline:
    """Continuous batching with a prefix cache, one thread, bfloat16."""
    scheduler = genai.SchedulerConfig()
    scheduler.cache_size = 2  # GiB
    scheduler.max_num_seqs = 64
    scheduler.max_num_batched_tokens = 1024
    scheduler.enable_prefix_caching = True
    settings = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "bf16"}
    return genai.ContinuousBatchingPipeline(str(ir), scheduler, "CPU", settings)


def main() -> None:
    """Serve runs until stdin ends."""
    folder, ir = map(Path, sys.argv[1:3])
    export(folder, ir)
    for line in sys.stdin:
        task = json.loads(line)
        inputs = [openvino.Tensor(numpy.array([ids])) for ids in task["prompts"]]
        config = genai.GenerationConfig(
            max_new_tokens=task["new_tokens"], ignore_eos=True, do_sample=False
        )
        fresh = pipeline(ir)
        if task["warm"]:
            prefix = openvino.Tensor(numpy.array([task["warm"]]))
            fresh.generate([prefix], [genai.GenerationConfig(max_new_tokens=1)])
        cpu_s, wall_s = time.process_time(), time.perf_counter()
        fresh.generate(inputs, [config] * len(inputs))
        took = {"cpu_s": time.process_time() - cpu_s, "wall_s": time.perf_counter() - wall_s}
        print(json.dumps(took), flush=True)


if __name__ == "__main__":
    main()
