"""The virtual environment with SGLang that the tests start servers from: pins, a shim, its build."""
