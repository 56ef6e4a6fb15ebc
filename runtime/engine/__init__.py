"""The embedded engine: paged KV in a radix tree, continuous batching, cascade attention.

`cache`, `state` and `batch` decide what is computed and import no torch, so a simulator can share
them; `config`, `rope`, `weights`, `model`, `attention` and `sample` compute it; `engine` is both.
docs/engine.md follows one request through them.
"""
