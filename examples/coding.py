"""A coding loop with slow tools: write, run the tests, read why they fail, write again.

    tenter run examples/coding.py numbers="[91, -17, 64, -38, 25]" folder=project

The chat only grows, and its KV cache waits while the tests run: `eta_s` says how long they usually
take, and the runtime learns it. What runs them has a folder, and limits on time, memory, processes
and output. Both tools are called by this code, not by the model: that is the author's rule, so that
nobody has to approve of them. Failed attempts are taken out of the chat, so that it stays short.
"""

from tenter.planner.graph import Sampling
from tenter.runtime import session, tool, workflow
from tenter.tools import file_tools, shell_tool

TESTS = """
import time
from solution import result

time.sleep(0.3)  # tests are slow
wanted = sum({numbers})
assert result == wanted, f"{{result}} is not what the tests want"
"""


@workflow
async def coding(numbers: list[int], folder: str, attempts: int = 8) -> dict:
    """The attempt that passed the tests, and how many it took."""
    *_, write_file = (tool(each) for each in file_tools(folder, write=True))
    shell = tool(shell_tool(["python3"], folder, effect="idempotent", timeout_s=20, eta_s=0.5))
    await write_file(path="tests.py", text=TESTS.format(numbers=numbers))
    first, *rest = numbers
    signs = "".join(f" {'-' if each < 0 else '+'} {abs(each)}" for each in rest)
    chat = session("You write programs that pass their tests.")
    for attempt in range(attempts):
        drawn = Sampling(max_tokens=300, temperature=float(attempt > 0), seed=attempt)
        said = await chat.ask(f"Compute {first}{signs}.", sampling=drawn, untrusted="the tests")
        await write_file(path="solution.py", text=f"result = {said.content.split()[-1]}\n")
        ran = await shell(argv=["python3", "tests.py"])
        if ran["exit"] == 0:
            return {"solution": said.content, "attempts": attempt + 1}
        await chat.compact(keep_last=2, summary="Earlier attempts failed.")
    return {"solution": None, "attempts": attempts}
