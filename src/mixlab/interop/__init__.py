"""Weights that cross from and to other libraries, one module a model family.

A family's module has `from_transformers(source)`, where `source` is a model of transformers or the folder of
one on disk (config.json and safetensors). transformers itself is never imported here: an object of it brings
its configuration and its weights along. RWKV-7's has `from_released` too, for its author's files.
"""
