"""How byte-level BPE tokenizers cut text before they merge, by the name that a GGUF file gives.

A GGUF file keeps pieces and merges, but only the *name* of the cut (`tokenizer.ggml.pre`), as
llama.cpp's converter knows it. A wrong cut gives wrong tokens without any error, so the cut of
each name stands here as the models' own tokenizer.json has it, and another name is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

PreTokenizerStep = dict[str, Any]


@dataclass(frozen=True)
class PreTokenizer:
    """`steps` are those of a tokenizer.json.

    `whole_words`: a word of the vocabulary is taken as it is, without merging (ignore_merges).
    `composed`: text is brought to Unicode's form NFC first. `add_bos`: text begins with BOS where
    the file doesn't say. `escaped`: no byte-level alphabet, spaces are written as SentencePiece
    does.
    """

    steps: tuple[PreTokenizerStep, ...]
    whole_words: bool = False
    composed: bool = False
    add_bos: bool = False
    escaped: bool = False


def byte_level(*, use_regex: bool) -> PreTokenizerStep:
    """GPT-2's way to write bytes as characters, with or without its cut into words."""
    return {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": False,
        "use_regex": use_regex,
    }


def _split(pattern: str) -> PreTokenizerStep:
    return {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
    }


def _cut(*patterns: str) -> tuple[PreTokenizerStep, ...]:
    return (*(_split(pattern) for pattern in patterns), byte_level(use_regex=False))


_ONE_DIGIT: PreTokenizerStep = {"type": "Digits", "individual_digits": True}
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_BLANKS = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"


def _tiktoken(digits: str, *, word: str = _WORD, signs: str = _SIGNS, blanks: str = _BLANKS) -> str:
    """OpenAI's cl100k pattern and its kin, which differ in how they cut numbers."""
    return rf"{_CONTRACTION}|{word}|{digits}|{signs}|{blanks}"


_LLAMA3, _QWEN2 = _tiktoken(r"\p{N}{1,3}"), _tiktoken(r"\p{N}")
_QWEN35 = _tiktoken(
    r"\p{N}",
    word=r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+",
    signs=r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*",
)
_JAIS2 = _tiktoken(
    r"\p{N}{1,3}",
    blanks=r"\s*[\r\n]+|\s{512}(?!\S)|\s{256}(?!\S)|\s{128}(?!\S)|\s{64}(?!\S)|\s{32}(?!\S)"
    r"|\s{16}(?!\S)|\s{8}(?!\S)|\s{4}(?!\S)|\s{1,2}(?!\S)|\s{1}",
)
_SEED_CODER = _tiktoken(r"\p{N}{1}", signs=r" ?[^\s\p{L}\p{N}\r\n]+")
_EXAONE_MOE = _tiktoken(
    r"\p{N}",
    word=r"[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+",
    signs=r" ?[^\s\p{L}\p{N}]+[\r\n/]?",
    blanks=r"\s*[\r\n]|\s+(?!\S)|\s+",
)
_BAILING = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*"
    r"|\s*[\r\n]|\s+(?!\S)|\s+"
)
_UFAKZEKA = rf"{_WORD}|\p{{N}}|{_SIGNS}|{_BLANKS}"

_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"


def _cased(digits: str, *, ending: str = "", but: str = "", signs: str = r"[\r\n/]*") -> str:
    """OpenAI's o200k pattern and its kin: words are cut where small letters meet capitals."""
    upper, lower = f"[{_UPPER}{but}]", f"[{_LOWER}{but}]"
    return (
        rf"[^\r\n\p{{L}}\p{{N}}]?{upper}*{lower}+{ending}"
        rf"|[^\r\n\p{{L}}\p{{N}}]?{upper}+{lower}*{ending}"
        rf"|{digits}| ?[^\s\p{{L}}\p{{N}}]+{signs}|{_BLANKS}"
    )


_GPT4O = _cased(r"\p{N}{1,3}", ending=_CONTRACTION + "?")
_TEKKEN = _cased(r"\p{N}")
_KIMI = r"[\p{Han}]+|" + _cased(
    r"\p{N}{1,3}", ending=_CONTRACTION + "?", but=r"&&[^\p{Han}]", signs=r"[\r\n]*"
)
_YOUTU = (
    "[\uac00-\ud7a3\u3131-\u318e]+|[\uff01\u2026\u201c\u201d\u2018\u2019\u2014\uff1a\uff1b\uff0c\u3001-\u303f\ufe30-\ufe4f]+|"
    "[\u3105-\u312f]+|[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    _cased(r"\p{N}", ending=_CONTRACTION + "?"),
)

_CJK = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_ASCII_SIGN = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"
_MARKED = rf"{_ASCII_SIGN}|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+"
_DEEPSEEK3 = (r"\p{N}{1,3}", _CJK, rf"{_MARKED}| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_BLANKS}")
_SPARK = (
    r"\p{N}{1,3}",
    _CJK,
    rf"{_MARKED}| ?[\p{{P}}\p{{S}}]+|[\r\n]|\s+(?!\S)|\s+",
    r"\p{N}",
)
_AFMOE = (
    r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))",
    "[\u4e00-\u9fff\u3400-\u4dbf\uf900-\ufaff\u3040-\u309f\u30a0-\u30ff\uff65-\uff9f\u2f00-\u2fdf"
    "\u0e40-\u0e7f\u0e80-\u0eff\u1780-\u17ff\u1000-\u109f\uaa60-\uaa7f\ua9e0-\ua9ff"
    "\uac00-\ud7af\u1100-\u11ff]+",
    _DEEPSEEK3[2],
)
_DEEPSEEK_LETTERS = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-"
    "\u02af\u0370-\u0373\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1"
    "\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-"
    "\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15"
    "\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d"
    "\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb"
    "\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d"
    "\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183"
    "\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b"
    "\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-"
    "\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb"
    "\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
)
_DEEPSEEK_HAN = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_DEEPSEEK_LLM = (
    _split("[\r\n]"),
    _split(rf"\s?[{_DEEPSEEK_LETTERS}]+"),
    _split(r"\s?" "[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+"),
    _split(r"\s+$"),
    _split(_DEEPSEEK_HAN),
    _ONE_DIGIT,
    byte_level(use_regex=False),
)
_DEEPSEEK_CODER = (
    *map(_split, ("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _DEEPSEEK_HAN)),
    _ONE_DIGIT,
    byte_level(use_regex=False),
)
_FALCON = (
    {"type": "Punctuation", "behavior": "Contiguous"},
    byte_level(use_regex=True),
    {"type": "Digits", "individual_digits": False},
    _split("[0-9][0-9][0-9]"),
)
_CHAMELEON = (
    *map(_split, ("<sentinel:[0-9]+>", "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z")),
    _split("([\\t\\n]|    |  )"),
    _ONE_DIGIT,
    _split(r"[\p{P}!-/:-@\[-`{-~]"),
    byte_level(use_regex=True),
)
_BLOOM = " ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"
_TINY_AYA = (r"\d{1,3}(?=(?:\d{3})*\b)", _GPT4O)

_GPT2_CUT = (byte_level(use_regex=True),)
_DIGITS_CUT = (_ONE_DIGIT, byte_level(use_regex=True))

_FAMILIES = (
    (PreTokenizer(_DIGITS_CUT),
     "smollm starcoder refact codeshell exaone minerva-7b mellum2"),
    (PreTokenizer(_DIGITS_CUT, composed=True), "command-r"),
    (PreTokenizer(_GPT2_CUT),
     "gpt-2 phi-2 jais gigachat a.x-4.0 mellum exaone4 trillion granite-docling jina-es jina-de "
     "jina-v1-en jina-v2-es jina-v2-de jina-v2-code roberta-bpe"),
    (PreTokenizer(_GPT2_CUT, composed=True), "mpt olmo modern-bert"),
    (PreTokenizer(_cut(_LLAMA3), whole_words=True, add_bos=True),
     "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano"),
    (PreTokenizer(_cut(_LLAMA3), whole_words=True), "glm4 glm5"),
    (PreTokenizer(_cut(_LLAMA3)), "dbrx smaug-bpe chatglm-bpe"),
    (PreTokenizer(_cut(r"\p{N}{1,3}", _tiktoken(r"\p{N}+")), whole_words=True), "minicpm5"),
    (PreTokenizer(_cut(_JAIS2)), "jais-2"),
    (PreTokenizer(_cut(_QWEN2), composed=True), "qwen2 deepseek-r1-qwen f2llmv2"),
    (PreTokenizer(_cut(_QWEN2)), "kormo megrez stablelm2 hunyuan solar-open grok-2"),
    (PreTokenizer(_cut(_QWEN35), composed=True), "qwen35"),
    (PreTokenizer(_cut(r"[^\n]+|[\n]+", _QWEN2)), "laguna"),
    (PreTokenizer(_cut(_UFAKZEKA)), "ufakzeka"),
    (PreTokenizer(_cut(_SEED_CODER)), "seed-coder"),
    (PreTokenizer(_cut(_EXAONE_MOE)), "exaone-moe"),
    (PreTokenizer(_cut(_BAILING)), "bailingmoe bailingmoe2 llada-moe"),
    (PreTokenizer(_cut(_TEKKEN), whole_words=True, add_bos=True), "tekken"),
    (PreTokenizer(_cut(_GPT4O)), "gpt-4o llama4 kanana2 talkie minimax-m2"),
    (PreTokenizer(_cut(_GPT4O), whole_words=True), "granite-embed-multi-97m"),
    (PreTokenizer(_cut(*_TINY_AYA), composed=True), "tiny_aya cohere2moe"),
    (PreTokenizer(_cut(_KIMI)), "kimi-k2"),
    (PreTokenizer(_cut(*_YOUTU), whole_words=True), "youtu"),
    (PreTokenizer(_cut(*_DEEPSEEK3)), "deepseek-v3 hunyuan-dense joyai-llm hy_v4"),
    (PreTokenizer(_cut(*_SPARK)), "spark2_5"),
    (PreTokenizer(_cut(*_AFMOE)), "afmoe"),
    (PreTokenizer(_DEEPSEEK_LLM), "deepseek-llm"),
    (PreTokenizer(_DEEPSEEK_CODER), "deepseek-coder"),
    (PreTokenizer(_FALCON), "falcon"),
    (PreTokenizer(_CHAMELEON, add_bos=True), "chameleon"),
    (PreTokenizer(_cut(_BLOOM)), "bloom poro-chat gpt3-finnish"),
    (PreTokenizer((_split(_BLOOM), _ONE_DIGIT, byte_level(use_regex=False))), "viking"),
    (PreTokenizer(_cut(r"\p{N}+", r"(?=(\d{3})+(?!\d))")), "superbpe"),
    (PreTokenizer((_split(r"[^\n]+|[\n]+"),), escaped=True, add_bos=True), "gemma4"),
    (PreTokenizer((_split(r"[^\n]+|[\n]+"),), escaped=True),
     "sarvam-moe granite-embed-multi-311m"),
)  # fmt: skip

PRE_TOKENIZERS = {name: cut for cut, names in _FAMILIES for name in names.split()}
