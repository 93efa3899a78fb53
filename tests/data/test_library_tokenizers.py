"""Tokenizers of others give the ids that the tokenizers library gives, for texts of any length."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

import numpy as np
import pytest
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from mixlab.data.bpe import BPETokenizer, is_own
from mixlab.data.library import LibraryTokenizer
from mixlab.data.tokenizer import from_json, load_tokenizer
from mixlab.decode import stream_text
from mixlab.errors import UserError

WORDS = [
    *(
        "the ",
        "The",
        " cat's",
        "12345",
        "\n\n",
        "  ",
        "\t",
        "déjà",
        "e\u0301",
        "İ",
        "ﬁ",
        "中文",
        "😀",
        "\u200d",
    ),
    *(
        "\x1c",
        "\x85",
        "\u2028",
        "\u3000",
        "<s>",
        "</s>",
        " <|tool|> ",
        "<|tool|>x",
        "<mask>",
        "don't",
        "!?...",
    ),
    *("▁", "Ġ", "##s", "\ufffd", "\r\n", "x" * 50, "ǆ", "ß", "<0x41>", "[UNK]"),
]
TRAINING = [
    "The cat sat on the mat, and the dog's 12345 bones; déjà vu 中文 😀!\n\n  indented\tcode <s> don't " * 9
]
GPT4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def ugly(characters: int, seed: int = 0) -> str:
    """Words, spaces and signs that tokenizers treat each in their own way."""
    draw = random.Random(seed)
    return "".join(draw.choices(WORDS, k=characters // 4))[:characters]


def trained(
    model: Any, trainer: Any, normalizer: Any = None, pre: Any = None, decoder: Any = None
) -> Tokenizer:
    engine = Tokenizer(model)
    for name, value in (("normalizer", normalizer), ("pre_tokenizer", pre), ("decoder", decoder)):
        if value is not None:
            setattr(engine, name, value)
    engine.train_from_iterator(TRAINING, trainer)
    return engine


def byte_level(**keys: Any) -> Tokenizer:
    return trained(
        models.BPE(),
        trainers.BpeTrainer(
            vocab_size=330, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
        ),
        pre=keys.get("pre", pre_tokenizers.ByteLevel(add_prefix_space=keys.get("prefix", False))),
        normalizer=keys.get("normalizer"),
        decoder=decoders.ByteLevel(),
    )


def sentencepiece(**keys: Any) -> Tokenizer:
    """Byte fallback, as in Llama 2: with a pre-tokenizer, or by normalising alone."""
    by_normalizer = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    plain = "scheme" not in keys
    return trained(
        models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True),
        trainers.BpeTrainer(
            vocab_size=400, special_tokens=["<unk>", "<s>", "</s>", *BYTES], show_progress=False
        ),
        normalizer=normalizers.Sequence(by_normalizer) if plain else None,
        pre=None if plain else pre_tokenizers.Metaspace(prepend_scheme=keys["scheme"], split=keys["split"]),
        decoder=decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        ),
    )


def unigram() -> Tokenizer:
    return trained(
        models.Unigram(),
        trainers.UnigramTrainer(vocab_size=200, unk_token="<unk>", special_tokens=["<unk>", "</s>"],
                                show_progress=False),
        normalizer=normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]),
        pre=pre_tokenizers.Metaspace(),
        decoder=decoders.Metaspace(),
    )  # fmt: skip


def word_piece() -> Tokenizer:
    return trained(
        models.WordPiece(unk_token="[UNK]"),
        trainers.WordPieceTrainer(vocab_size=120, special_tokens=["[UNK]", "[SEP]"], show_progress=False),
        normalizer=normalizers.BertNormalizer(lowercase=True),
        pre=pre_tokenizers.BertPreTokenizer(),
        decoder=decoders.WordPiece(),
    )


def word_level(normalizer: Any) -> Tokenizer:
    return trained(
        models.WordLevel(unk_token="[UNK]"),
        trainers.WordLevelTrainer(vocab_size=60, special_tokens=["[UNK]"], show_progress=False),
        normalizer=normalizer,
        pre=pre_tokenizers.Whitespace(),
    )


def with_added(engine: Tokenizer) -> Tokenizer:
    """Tokens beyond the model's own vocabulary, special or not, that take spaces with them or stand alone."""
    engine.add_special_tokens([AddedToken("<s>"), AddedToken("<|endoftext|>")])
    engine.add_tokens([
        AddedToken("<|tool|>", lstrip=True, rstrip=True, normalized=False),
        AddedToken("<mask>", single_word=True, normalized=False),
        AddedToken("déjà", normalized=True),
        AddedToken("cat", lstrip=True, single_word=True),
    ])  # fmt: skip
    return engine


def with_requests(engine: Tokenizer) -> Tokenizer:
    """What a single request may ask for, and data must not get."""
    engine.add_special_tokens(["[BOS]", "[EOS]"])
    ends = [(name, engine.token_to_id(name)) for name in ("[BOS]", "[EOS]")]
    engine.post_processor = processors.TemplateProcessing(single="[BOS] $A [EOS]", special_tokens=ends)
    engine.enable_truncation(max_length=16)
    engine.enable_padding(length=9000, pad_id=3)
    return engine


gpt4 = pre_tokenizers.Sequence(
    [pre_tokenizers.Split(Regex(GPT4), "isolated"), pre_tokenizers.ByteLevel(use_regex=False)]
)
FOREIGN: dict[str, Tokenizer] = {
    "byte-level": byte_level(),
    "byte-level with a prefix space": byte_level(prefix=True),
    "byte-level, NFC": byte_level(normalizer=normalizers.NFC()),
    "byte-level, lowercase and strip": byte_level(
        normalizer=normalizers.Sequence([normalizers.Lowercase(), normalizers.Strip()])
    ),
    "byte-level, added tokens": with_added(byte_level()),
    "byte-level, requests": with_requests(byte_level()),
    "divided as GPT-4": byte_level(pre=gpt4),
    "sentencepiece": sentencepiece(),
    "sentencepiece, added tokens": with_added(sentencepiece()),
    "metaspace, first, whole": sentencepiece(scheme="first", split=False),
    "metaspace, always, split": sentencepiece(scheme="always", split=True),
    "metaspace, never, split": sentencepiece(scheme="never", split=True),
    "unigram": unigram(),
    "unigram, added tokens": with_added(unigram()),
    "word-piece": word_piece(),
    "word-piece, added tokens": with_added(word_piece()),
    "word-level, NFKD": word_level(normalizers.NFKD()),
    "word-level, lowercase": word_level(normalizers.Lowercase()),
}
OWN = BPETokenizer.train(TRAINING, vocab_size=330)


def changed(**keys: Any) -> dict[str, Any]:
    """A tokenizer learnt here with something else in its file."""
    content = copy.deepcopy(OWN.to_json())
    content["model"] |= keys.pop("model", {})
    return content | keys


def split(pattern: str) -> dict[str, Any]:
    pre = changed()["pre_tokenizer"]
    pre["pretokenizers"][0]["pattern"] = {"Regex": pattern}
    return pre


added = {
    "id": 330,
    "content": " cat",
    "single_word": False,
    "lstrip": False,
    "rstrip": False,
    "special": False,
}
PREFIXED = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
LOOKALIKES: dict[str, dict[str, Any]] = {
    "a normaliser": changed(normalizer={"type": "Lowercase"}),
    "an added token": changed(added_tokens=[added | {"id": OWN.vocab_size, "normalized": True}]),
    "a special token": changed(
        added_tokens=[added | {"id": 0, "content": "<end of document>", "special": True, "normalized": False}]
    ),
    "another division": changed(pre_tokenizer=split(r"\s+|\w+|[^\w\s]+")),
    "a prefix space": changed(pre_tokenizer=PREFIXED),
    "merges ignored": changed(model={"ignore_merges": True}),
    "tokens around": changed(post_processor={
        "type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "E", "type_id": 0}},
                                                 {"Sequence": {"id": "A", "type_id": 0}}], "pair": [],
        "special_tokens": {"E": {"id": "E", "ids": [0], "tokens": ["E"]}},
    }),
    "another decoder": changed(decoder={"type": "Fuse"}),
}  # fmt: skip


def by_library(content: dict[str, Any], text: str) -> list[int]:
    engine = Tokenizer.from_str(json.dumps(content))
    engine.no_truncation()
    engine.no_padding()
    return engine.encode(text, add_special_tokens=False).ids


def content_of(name: str) -> dict[str, Any]:
    return LOOKALIKES[name] if name in LOOKALIKES else json.loads(FOREIGN[name].to_str())


@pytest.mark.parametrize("name", [*FOREIGN, *LOOKALIKES])
def test_every_tokenizer_of_others_encodes_as_the_library(name: str) -> None:
    content = content_of(name)
    tokenizer = from_json(content)
    assert isinstance(tokenizer, LibraryTokenizer)
    for text in ("", " ", "The cat", ugly(300), ugly(70_000, 1)):
        found = tokenizer.encode(text)
        assert found.tolist() == by_library(content, text)
        assert found.dtype == np.min_scalar_type(tokenizer.vocab_size - 1)


@pytest.mark.parametrize("name", ["byte-level, added tokens", "sentencepiece"])
def test_a_text_of_more_than_a_million_characters_too(name: str) -> None:
    text = ugly(70_000, 2) * 15
    assert len(text) > 1_000_000
    assert from_json(content_of(name)).encode(text).tolist() == by_library(content_of(name), text)


def test_what_is_learnt_here_takes_the_fast_way_and_nothing_else_does(tmp_path: Any) -> None:
    assert is_own(OWN.to_json())
    assert isinstance(from_json(json.loads(json.dumps(OWN.to_json()))), BPETokenizer)
    assert not any(is_own(content) for content in LOOKALIKES.values())
    (tmp_path / "tokenizer.json").write_text(json.dumps(LOOKALIKES["a normaliser"]))
    assert load_tokenizer(tmp_path).kind == "library"


@pytest.mark.parametrize("name", FOREIGN)
def test_added_tokens_count_and_the_file_stays_as_it_was(name: str, tmp_path: Any) -> None:
    content = content_of(name)
    tokenizer = from_json(content)
    ids = FOREIGN[name].get_vocab(with_added_tokens=True).values()
    assert tokenizer.vocab_size == 1 + max(ids) >= len(ids)
    tokenizer.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert (again.hash, again.vocab_size, again.to_json()) == (tokenizer.hash, tokenizer.vocab_size, content)


@pytest.mark.parametrize("name", FOREIGN)
def test_text_as_it_comes_is_the_text_of_all_ids(name: str) -> None:
    tokenizer = from_json(content_of(name))
    ids = tokenizer.encode(ugly(4000, 3).replace("\ufffd", "")).tolist()
    pieces = list(stream_text(tokenizer, ids))
    assert "".join(pieces) == tokenizer.decode(ids) == FOREIGN[name].decode(ids, skip_special_tokens=False)
    assert len(pieces) > len(ids) / 4
    # An added token is no byte-level text: the library itself takes "déjà" for bytes that are none.
    assert any("\ufffd" in piece for piece in pieces) == ("\ufffd" in tokenizer.decode(ids))


def test_streams_need_an_end_of_a_document_at_zero() -> None:
    engine = byte_level()
    content = json.loads(engine.to_str())
    vocab = content["model"]["vocab"]
    content["model"]["vocab"] = {"<|endoftext|>": 0, **{token: i + 1 for token, i in vocab.items()}}
    tokenizer = from_json(content)
    assert tokenizer.end == 0
    one, two = (tokenizer.encode(text).tolist() for text in ("the cat", "sat"))
    assert tokenizer.encode_documents(["the cat", "", "sat"]).tolist() == [0, *one, 0, 0, *two, 0]
    assert tokenizer.encode_stretch("the cat\0sat\0").tolist() == [*one, 0, *two, 0]
    assert tokenizer.encode_stretch("the cat").tolist() == one
    other = from_json(content_of("byte-level, added tokens"))
    assert other.end == FOREIGN["byte-level, added tokens"].token_to_id("<|endoftext|>") > 0
    for encode, text in ((other.encode_documents, ["the cat"]), (other.encode_stretch, "the cat")):
        with pytest.raises(UserError, match="token 0 is the end of a document"):
            encode(text)
    assert from_json(content_of("byte-level")).end is None


def test_unknown_tokens_are_counted_and_lone_surrogates_replaced() -> None:
    for name in ("word-piece", "word-level, NFKD", "unigram"):
        tokenizer = from_json(content_of(name))
        assert tokenizer.count_unknown(tokenizer.encode("ЖЖ ЖЖ")) > 0
        assert tokenizer.count_unknown(tokenizer.encode("cat")) == 0
    tokenizer = from_json(content_of("byte-level"))
    assert tokenizer.count_unknown(tokenizer.encode("Ж")) == 0
    assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a\ufffdb"
    with pytest.raises(ValueError, match="outside the vocabulary"):
        tokenizer.decode([tokenizer.vocab_size])


def test_merges_are_not_dropped_at_random() -> None:
    content = changed(model={"dropout": 0.5})
    tokenizer = from_json(content)
    assert isinstance(tokenizer, LibraryTokenizer)
    assert tokenizer.encode(TRAINING[0]).tolist() == OWN.encode(TRAINING[0]).tolist()
    assert tokenizer.to_json() == content
