"""Text in, batches out: corpora, the train/valid split, tokenizers, cached token files and windows of them.

The names below are imported on first use; only `Batches` and `eval_windows` need torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mixlab.lazy import on_first_use

if TYPE_CHECKING:
    from mixlab.data.batches import Batches as Batches
    from mixlab.data.batches import eval_windows as eval_windows
    from mixlab.data.bpe import BPETokenizer as BPETokenizer
    from mixlab.data.config import DataConfig as DataConfig
    from mixlab.data.corpus import Corpus as Corpus
    from mixlab.data.dataset import Dataset as Dataset
    from mixlab.data.dataset import prepare as prepare
    from mixlab.data.dataset import prepare_single as prepare_single
    from mixlab.data.split import Split as Split
    from mixlab.data.split import split_documents as split_documents
    from mixlab.data.tokenizer import ByteTokenizer as ByteTokenizer
    from mixlab.data.tokenizer import CharTokenizer as CharTokenizer
    from mixlab.data.tokenizer import Tokenizer as Tokenizer
    from mixlab.data.tokenizer import load_tokenizer as load_tokenizer
    from mixlab.data.tokenizer import make_tokenizer as make_tokenizer
    from mixlab.data.tokens import TokenFile as TokenFile
    from mixlab.data.tokens import default_cache_dir as default_cache_dir
else:
    __all__, __getattr__, __dir__ = on_first_use(__name__)
