"""A run steered from outside its process: requests, answers, and how far it is."""
