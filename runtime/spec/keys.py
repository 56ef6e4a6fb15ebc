"""The keys of the YAML format: one table per mapping, read by the validator and by the schema."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ...planner.step_checks import MAX_ITERATIONS, MAX_PACK, MAX_VOTES

KeyKind = Literal[
    "version",  # 1
    "text",
    "prompt",  # a Jinja template
    "integer",
    "number",
    "boolean",
    "choices",  # a list of two or more texts
    "texts",  # a text or a list of texts
    "texts_by_name",  # a mapping of names to texts
    "effect",
    "expression",  # text in the expression language, or a list
    "condition",  # text in the expression language, or a boolean
    "value",  # any data; texts in it may hold {{ expressions }}
    "values",  # a mapping of names to values
    "branch",  # a value, or {steps, result}
    "type",  # a type name, a mapping of fields to types, or a JSON Schema
    "inputs",
    "models",
    "tools",
    "steps",
    "scheduling",
    "cascade",  # another call's model, and what it must hold to
    "scorer",  # a tool's name, or a call of a model
    "approve",  # pause
    "on_limit",  # fail or last
    "data",  # any data, checked by what reads it
]


@dataclass(frozen=True, slots=True)
class Key:
    """What may stand under a key. `least` and `most` bound numbers; `least` is excluded if `above`."""

    kind: KeyKind
    doc: str
    required: bool = False
    least: float | None = None
    most: float | None = None
    above: bool = False
    nullable: bool = False


Table = Mapping[str, Key]

TOP: Table = {
    "version": Key("version", "The version of this format: 1.", required=True),
    "name": Key("text", "The workflow's name.", required=True),
    "description": Key("text", "What the workflow is for."),
    "inputs": Key("inputs", "The inputs by name, each with its type."),
    "models": Key("models", "What serves each model name that steps use."),
    "tools": Key("tools", "The tools that steps call, by name."),
    "scheduling": Key("scheduling", "The order of programs, what is kept for them, limits."),
    "cache": Key("boolean", "Whether results of earlier runs answer equal calls."),
    "steps": Key("steps", "The steps by id, in any order.", required=True),
    "output": Key("value", "The workflow's result.", required=True),
}

SCHEDULING: Table = {
    "order": Key("text", "Whose turn it is: the name of an order."),
    "retention": Key("text", "How long KV is kept while a tool runs: the name of a policy."),
    "tenant": Key("text", "The input whose value says for whom a program runs."),
    "limits": Key("data", "Limits of models and tenants, and of the memory kept for programs."),
    "without": Key("texts", "Rules of the planner to leave out, such as order, group."),
    "place": Key("boolean", "Whether rows over several models' workers follow a placement."),
}

_WHEN = Key("condition", "The step is skipped unless this holds.")
_WITH = Key("values", "Values by name; a name that is missing here is looked up by itself.")

_DRAW: Table = {
    "temperature": Key("number", "0 takes the likeliest token each time.", least=0),
    "top_k": Key("integer", "How many tokens to draw from; 0 for all.", least=0),
    "top_p": Key("number", "Draw from tokens of this total share.", least=0, most=1, above=True),
    "seed": Key("integer", "Makes a draw repeatable."),
}

LLM_STEP: Table = {
    "llm": Key("prompt", "The prompt: a Jinja template.", required=True),
    "system": Key("prompt", "The system prompt: a Jinja template."),
    "with": _WITH,
    "choices": Key("choices", "The result is one of these texts."),
    "free_fields": Key("texts", "Fields of the prompt whose order is open: a plan may change it."),
    "cascade": Key("cascade", "A smaller model that answers what it is sure of."),
    "pack": Key("integer", "How many rows may share a prompt.", least=2, most=MAX_PACK),
    "votes": Key(
        "integer", "In how many orders rows of a pack are asked.", least=1, most=MAX_VOTES
    ),
    "output": Key("type", "The result is JSON of this type."),
    "model": Key("text", "Which of the models; `default` if not given."),
    "max_tokens": Key("integer", "The longest answer.", least=1),
    "temperature": Key("number", "0 takes the likeliest token each time.", least=0),
    "top_k": Key("integer", "How many tokens to draw from; 0 for all.", least=0),
    "top_p": Key("number", "Draw from tokens of this total share.", least=0, most=1, above=True),
    "stop": Key("texts", "The answer ends before any of these texts."),
    "seed": Key("integer", "Makes a draw repeatable."),
    "ignore_eos": Key("boolean", "Run to max_tokens; for benchmarks."),
    "when": _WHEN,
}
CASCADE: Table = {
    "model": Key("text", "The smaller of the models.", required=True),
    "target": Key("number", "The share of answers that agrees; .95 if not given.", least=0, most=1),
    "confidence": Key("number", "How sure that is to be; .9 if not given.", least=0, most=1),
    "sample": Key("integer", "How many rows both models answer; 200 if not given.", least=1),
}
AGENT_STEP: Table = {
    "agent": Key("prompt", "What the agent is asked: a Jinja template.", required=True),
    "tools": Key("texts", "The tools under `tools` that it may call."),
    "system": Key("prompt", "The system prompt: a Jinja template."),
    "with": _WITH,
    "output": Key("type", "The answer is JSON of this type."),
    "model": Key("text", "Which of the models; `default` if not given."),
    "max_turns": Key("integer", "How often the model may speak; 10 if not given.", least=1),
    "max_tokens": Key("integer", "How much it may write in all turns together.", least=1),
    "turn_tokens": Key("integer", "How much it may write in one turn; 256 if not given.", least=1),
    "allow": Key("texts", "Tools that may run although it has read what strangers wrote."),
    "approve": Key("approve", "`pause`: stop for approval where another tool would need a rule."),
    "speculate": Key("boolean", "Start calls of pure tools while their turn is being written."),
    **_DRAW,
    "when": _WHEN,
}
REASON_STEP: Table = {
    "reason": Key("prompt", "What is to be thought about: a Jinja template.", required=True),
    "strategy": Key(
        "text",
        "thought, self-consistency, vote, first-finish, best-of-n, rebase, mcts or routed.",
    ),
    "scorer": Key("scorer", "What gives rewards: a tool's name, or a call of a model."),
    "settings": Key("data", "Settings of the strategy, such as n, rule, answers, shadow."),
    "system": Key("prompt", "The system prompt: a Jinja template."),
    "with": _WITH,
    "model": Key("text", "Which of the models; `default` if not given."),
    "max_tokens": Key("integer", "The longest sample.", least=1),
    **_DRAW,
    "when": _WHEN,
}
REDUCE_STEP: Table = {
    "reduce": Key("prompt", "The prompt: a Jinja template.", required=True),
    "over": Key("text", "The field of the prompt that has the list.", required=True),
    "merge": Key("prompt", "The prompt that folds answers; `reduce` if not given."),
    "batch_tokens": Key("integer", "The longest prompt; what the model takes if not.", least=1),
    "tree": Key("boolean", "false: one call, even where the list is too long for it."),
    "system": Key("prompt", "The system prompt: a Jinja template."),
    "with": _WITH,
    "output": Key("type", "The result is JSON of this type."),
    "model": Key("text", "Which of the models; `default` if not given."),
    "max_tokens": Key("integer", "The longest answer of a call.", least=1),
    **_DRAW,
    "when": _WHEN,
}
SCORER: Table = {
    "llm": Key("prompt", "A template of question, thought, answer or part.", required=True),
    "system": Key("prompt", "The system prompt: a Jinja template."),
    "choices": Key("choices", "The reward is the probability of the first of these."),
    "output": Key("type", "number, where the model writes the reward."),
    "model": Key("text", "Which of the models; `default` if not given."),
    "max_tokens": Key("integer", "The longest answer.", least=1),
}
TOOL_STEP: Table = {
    "tool": Key("text", "The tool's name under `tools`.", required=True),
    "with": _WITH,
    "when": _WHEN,
}
EACH_STEP: Table = {
    "each": Key("expression", "The list whose items the steps run for.", required=True),
    "as": Key("text", "What the item is called inside; `item` if not given."),
    "steps": Key("steps", "The steps for one item."),
    "result": Key("value", "What one item gives; the last step's result if not given."),
    "when": _WHEN,
}
REPEAT_STEP: Table = {
    "repeat": Key("value", "What the first iteration begins with.", required=True),
    "as": Key("text", "What that is called inside; `state` if not given."),
    "steps": Key("steps", "The steps of one iteration."),
    "result": Key("value", "What the next iteration begins with; the last step's if not given."),
    "until": Key("condition", "It ends after an iteration where this holds.", required=True),
    "max_iterations": Key(
        "integer", "How often it runs at most.", required=True, least=1, most=MAX_ITERATIONS
    ),
    "on_limit": Key("on_limit", "Where `until` never holds: `fail` (the default) or `last`."),
    "when": _WHEN,
}
SELECT_STEP: Table = {
    "select": Key("condition", "Which of the two values it is.", required=True),
    "then": Key("value", "The value where the condition holds.", required=True),
    "else": Key("value", "The value where it does not."),
    "when": _WHEN,
}
BRANCH_STEP: Table = {
    "when": Key("condition", "Which of the two branches is taken.", required=True),
    "then": Key("branch", "A value, or steps and a result, where it holds.", required=True),
    "else": Key("branch", "A value, or steps and a result, where it does not."),
}
VALUE_STEP: Table = {
    "value": Key("value", "A value put together from others.", required=True),
    "when": _WHEN,
}
WORKFLOW_STEP: Table = {
    "workflow": Key("text", "Another YAML workflow, relative to this file.", required=True),
    "with": _WITH,
    "when": _WHEN,
}

# The key that says what kind a step is -> its keys. A step with `then` and none of these branches.
STEP_KINDS: Mapping[str, Table] = {
    "llm": LLM_STEP,
    "agent": AGENT_STEP,
    "reason": REASON_STEP,
    "tool": TOOL_STEP,
    "each": EACH_STEP,
    "reduce": REDUCE_STEP,
    "repeat": REPEAT_STEP,
    "select": SELECT_STEP,
    "value": VALUE_STEP,
    "workflow": WORKFLOW_STEP,
}

BLOCK: Table = {
    "steps": Key("steps", "The steps of the branch.", required=True),
    "result": Key("value", "What the branch gives.", required=True),
}

_LIMITS: Table = {
    "effect": Key("effect", "pure, idempotent or once."),
    "timeout_s": Key(
        "number", "How long a call may take; null for ever.", least=0, above=True, nullable=True
    ),
    "retries": Key("integer", "How often a failed call is repeated.", least=0),
    "max_concurrency": Key("integer", "How many calls run at once.", least=1, nullable=True),
    "eta_s": Key("number", "How long a call usually takes.", least=0, nullable=True),
}
_MEMO = Key("number", "For how long a pure result answers equal calls.", least=0, nullable=True)
_DESCRIPTION = Key("text", "What the tool does, as a model is told.")
_PARAMETERS = Key("inputs", "The parameters by name, each with its type.")

# The key that says what kind a tool is -> its keys.
TOOL_KINDS: Mapping[str, Table] = {
    "python": {
        "python": Key("text", '"module:function", relative to this file.', required=True),
        **_LIMITS,
    },
    "http": {
        "http": Key("text", "A URL; {name} in it is a parameter.", required=True),
        "method": Key("text", "GET, POST, PUT, PATCH or DELETE; GET if not given."),
        "parameters": _PARAMETERS,
        "headers": Key("texts_by_name", 'Headers; "env:NAME" in them is read when called.'),
        "description": _DESCRIPTION,
        "max_bytes": Key("integer", "How much of an answer is read.", least=1),
        "memo_s": _MEMO,
        **_LIMITS,
    },
    "sql": {
        "sql": Key(
            "text",
            '"postgresql://host/name", "sqlite:///path" or "duckdb:///path", or "env:NAME".',
            required=True,
        ),
        "query": Key("text", "The statement, with :name for parameters; else the model writes it."),
        "parameters": _PARAMETERS,
        "write": Key("boolean", "Whether it may change data; it only reads if not given."),
        "description": _DESCRIPTION,
        "max_rows": Key("integer", "How many rows an answer has at most.", least=1),
        "functions": Key("texts", "Functions that a read may call beside those of values alone."),
        "memo_s": _MEMO,
        **_LIMITS,
    },
    "shell": {
        "shell": Key("texts", "The programs that may be run.", required=True),
        "folder": Key("text", "Where they run, relative to this file.", required=True),
        "environment": Key("texts_by_name", "The variables that they see beside PATH and HOME."),
        "description": _DESCRIPTION,
        "output_bytes": Key("integer", "How much of each output is kept.", least=1),
        "memory_bytes": Key("integer", "How much memory each process may have.", least=1),
        "processes": Key("integer", "How many processes may run at once.", least=1),
        **_LIMITS,
    },
    "files": {
        "files": Key("text", "The folder, relative to this file.", required=True),
        "tool": Key("text", "read_file, list_files or write_file.", required=True),
        "max_bytes": Key("integer", "How much of a file is read or written.", least=1),
    },
    "mcp": {
        "mcp": Key("texts", "A URL, or a command and its arguments.", required=True),
        "tool": Key("text", "Which of the server's tools it is.", required=True),
        "environment": Key("texts_by_name", "The variables that a command sees."),
        "trusted": Key("boolean", "Whether the server's own hints are believed."),
        "effect": Key("effect", "pure, idempotent or once."),
        "timeout_s": Key("number", "How long a call may take.", least=0, above=True),
    },
}
