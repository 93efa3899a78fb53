"""Text in, batches out: corpora, the train/valid split, tokenizers, cached token files and windows of them.

The names below are imported on first use; only `Batches` and `eval_windows` need torch.
"""

from __future__ import annotations

from mixlab.lazy import on_first_use

_HOME = {
    "DataConfig": "mixlab.data.config",
    "Corpus": "mixlab.data.corpus",
    "Split": "mixlab.data.split",
    "split_documents": "mixlab.data.split",
    "Tokenizer": "mixlab.data.tokenizer",
    "ByteTokenizer": "mixlab.data.tokenizer",
    "CharTokenizer": "mixlab.data.tokenizer",
    "BPETokenizer": "mixlab.data.bpe",
    "load_tokenizer": "mixlab.data.tokenizer",
    "make_tokenizer": "mixlab.data.tokenizer",
    "TokenFile": "mixlab.data.tokens",
    "default_cache_dir": "mixlab.data.tokens",
    "Dataset": "mixlab.data.dataset",
    "prepare": "mixlab.data.dataset",
    "prepare_single": "mixlab.data.dataset",
    "Batches": "mixlab.data.batches",
    "eval_windows": "mixlab.data.batches",
}
__all__ = sorted(_HOME)
__getattr__, __dir__ = on_first_use(__name__, _HOME)
