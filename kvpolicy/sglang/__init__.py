"""Pins that hold: a tree-cache backend for SGLang servers, installed as their plugin."""
