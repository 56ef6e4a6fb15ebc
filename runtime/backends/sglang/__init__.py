"""Real SGLang servers behind the backend door."""
