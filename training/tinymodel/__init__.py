"""How the tiny model that ships with Tenter is made: jobs, tokenizer, network, training, scoring."""
