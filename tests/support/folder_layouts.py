"""Small Hugging Face folders in the layouts that people have, and what is asked of each.

Shared by the test and by the script that asks transformers: `tests/golden/make_folders`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from maestrale.models.vocabulary import byte_of_character

SIZE = 600  # rows of logits
CONTROL = ("<s>", "</s>", "<|turn|>", "<|user|>", "<|bot|>", "<tool_call>")
PLAIN = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}<|user|>{{ m.content }}"
    "{% else %}<|bot|>{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|bot|>{% endif %}"
)
TOOLS = "{{ bos_token }}{{ tools | tojson }}<tool_call>" + PLAIN.removeprefix("{{ bos_token }}")
NAMED = "{{ unk_token }}|{{ pad_token }}|{{ image_token }}|{{ messages[0].content }}"
TALK = [
    {"role": "user", "content": "Hi  there, 12345"},
    {"role": "assistant", "content": "Привет! 你好"},
    {"role": "user", "content": "  and  this?\n\n ok"},
]
TOOL = {
    "type": "function",
    "function": {"name": "f", "description": "d", "parameters": {"type": "object"}},
}
TEXTS = (
    "Hello world",
    " leading and trailing ",
    "naïve café — “quotes” €5 ½ ²",
    "你好世界 こんにちは привет мир مرحبا नमस्ते 안녕",
    "don't DON'T 1,234.56 e\u0301 \u1e9b\u0323",
    "line\nline\r\n\n\ttab   spaces",
    "🚀👨\u200d👩\u200d👧",
    "aaaaaaaaaaaa--------",
)
Document = dict[str, Any]


def byte_level(normalizer: Any = None, pre: Any = None, post: Any = None) -> Document:
    """A byte-level BPE of 256 bytes, some merges and the control tokens."""
    letters = [*byte_of_character()]
    merges = [["t", "h"], ["th", "e"], ["Ġ", "a"], ["1", "2"], ["12", "3"], ["a", "a"], ["aa", "a"]]
    vocab = {piece: token for token, piece in enumerate([*letters, *("".join(m) for m in merges)])}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [added(len(vocab) + at, name) for at, name in enumerate(CONTROL)],
        "normalizer": normalizer,
        "pre_tokenizer": pre or level | {"use_regex": True},
        "post_processor": post,
        "decoder": level | {"use_regex": True},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
            "vocab": vocab, "merges": merges,
        },
    }  # fmt: skip


def added(token: int, name: str, **more: Any) -> Document:
    entry = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": token, "content": name, **entry, "special": name != "<tool_call>", **more}


def adding(before: str, after: str = "", document: Document | None = None) -> Any:
    """A post-processor that puts tokens around a text."""
    ids = {entry["content"]: entry["id"] for entry in (document or byte_level())["added_tokens"]}
    parts: list[Any] = [{"Sequence": {"id": "A", "type_id": 0}}]
    special = [name for name in (before, after) if name]
    if before:
        parts.insert(0, {"SpecialToken": {"id": before, "type_id": 0}})
    if after:
        parts.append({"SpecialToken": {"id": after, "type_id": 0}})
    return {
        "type": "TemplateProcessing",
        "single": parts,
        "pair": [*parts, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {
            name: {"id": name, "ids": [ids[name]], "tokens": [name]} for name in special
        },
    }


def metaspace(scheme: str) -> Document:
    """What transformers makes of such a model: BPE with byte fallback."""
    letters = [
        "<unk>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁",
        *"abcdefghijklmnopqrstuvwxyz",
    ]
    letters += [*"ABCDHT12345,.!'", "Привет"[0], "▁▁", "th", "▁a", "aa"]
    vocab = {piece: token for token, piece in enumerate(dict.fromkeys(letters))}
    document = byte_level()
    merges = [["t", "h"], ["▁", "a"], ["a", "a"], ["▁", "▁"]]
    model = {"unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True, "vocab": vocab}
    replaced = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    decoders = [replaced, {"type": "ByteFallback"}, {"type": "Fuse"}]
    return document | {
        "model": document["model"] | model | {"merges": merges},
        "added_tokens": [added(len(vocab) + at, name) for at, name in enumerate(CONTROL)],
        "pre_tokenizer": {
            "type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False,
        },
        "decoder": {"type": "Sequence", "decoders": decoders},
    }  # fmt: skip


def unigram() -> Document:
    letters = {"<unk>": 0.0, "▁": -2.0, "a": -3.0, "▁a": -2.5, "aa": -4.0, "H": -5.0, "i": -5.0}
    document = metaspace("always")
    added_ = [added(len(letters) + at, name) for at, name in enumerate(CONTROL)]
    model = {"type": "Unigram", "unk_id": 0, "vocab": [*map(list, letters.items())]}
    return document | {"model": model | {"byte_fallback": False}, "added_tokens": added_}


_SETTINGS = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": "<s>",
    "eos_token": "<|turn|>",
    "chat_template": PLAIN,
}
_QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN_CUT = {
    "type": "Sequence",
    "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": _QWEN}, "behavior": "Isolated", "invert": False},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
    ],
}


def _folder(document: Document, settings: Document | None = None, **files: Any) -> Any:
    everything = {"tokenizer.json": document, "tokenizer_config.json": settings or _SETTINGS}
    return everything | files


def _stripping(document: Document) -> Document:
    for entry in document["added_tokens"]:
        entry |= {"lstrip": entry["content"] == "<|bot|>", "rstrip": entry["content"] == "<|user|>"}
    return document


def _lacking(*names: str) -> Document:
    """A tokenizer.json without its last tokens, which the settings have to add."""
    document = byte_level()
    kept = [entry for entry in document["added_tokens"] if entry["content"] not in names]
    return document | {"added_tokens": kept}


def _decoder(**more: Any) -> Document:
    """All added tokens as tokenizer_config.json lists them."""
    return {
        str(entry["id"]): {key: value for key, value in (entry | more).items() if key != "id"}
        for entry in byte_level()["added_tokens"]
    }


def _among_pieces() -> Document:
    document = metaspace("first")
    ids = {entry["content"]: entry["id"] for entry in document["added_tokens"]}
    model = document["model"] | {"vocab": document["model"]["vocab"] | ids}
    return document | {"added_tokens": [], "model": model}


_LAST = CONTROL[-2:]
_NAMED_LIST = [
    {"name": "default", "template": PLAIN},
    {"name": "tool_use", "template": TOOLS},
    {"name": "rag", "template": "{{ documents }}"},
]
_MORE = {
    "unk_token": "<s>",
    "pad_token": {"content": "</s>", "__type": "AddedToken"},
    "image_token": "<|user|>",
    "chat_template": NAMED,
}
_SPECIAL_MAP = {"bos_token": {"content": "<s>"}, "eos_token": "</s>", "unk_token": "</s>"}
_SPECIAL_MAP_MORE = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "additional_special_tokens": ["<|user|>", "<|bot|>"],
}


# name → what `write` puts into the folder, by file
LAYOUTS: dict[str, Callable[[], dict[str, Any]]] = {
    "plain": lambda: _folder(byte_level()),
    "bos of the post-processor": lambda: _folder(byte_level(post=adding("<s>"))),
    "bos within a sequence of post-processors": lambda: _folder(
        byte_level(
            post={
                "type": "Sequence",
                "processors": [
                    {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False},
                    adding("<s>"),
                ],
            }
        )
    ),
    "bos and eos around a text": lambda: _folder(byte_level(post=adding("<s>", "</s>"))),
    "add_bos_token is not asked": lambda: _folder(
        byte_level(), _SETTINGS | {"add_bos_token": True}
    ),
    "NFC and Qwen's cut": lambda: _folder(byte_level({"type": "NFC"}, _QWEN_CUT)),
    "a list of templates": lambda: _folder(
        byte_level(), _SETTINGS | {"chat_template": _NAMED_LIST}
    ),
    "templates in files": lambda: _folder(
        byte_level(),
        _SETTINGS | {"chat_template": "wrong"},
        **{
            "chat_template.jinja": PLAIN,
            "additional_chat_templates/tool_use.jinja": TOOLS,
            "additional_chat_templates/rag.jinja": "{{ documents }}",
        },
    ),
    "one template in a file": lambda: _folder(
        byte_level(),
        _SETTINGS | {"chat_template": _NAMED_LIST},
        **{"chat_template.jinja": PLAIN},
    ),
    "special tokens as objects, and others": lambda: _folder(byte_level(), _SETTINGS | _MORE),
    "special_tokens_map.json": lambda: _folder(
        byte_level(), {"chat_template": PLAIN}, **{"special_tokens_map.json": _SPECIAL_MAP}
    ),
    "special tokens in extra_special_tokens": lambda: _folder(
        byte_level(),
        _SETTINGS | {"extra_special_tokens": {"image_token": "<|bot|>"}, "chat_template": NAMED},
    ),
    "all added tokens in the settings": lambda: _folder(
        _lacking(*CONTROL), _SETTINGS | {"added_tokens_decoder": _decoder()}
    ),
    "some added tokens in the settings": lambda: _folder(
        _lacking(*_LAST), _SETTINGS | {"added_tokens_decoder": _decoder()}
    ),
    "the settings say that tokens take blanks": lambda: _folder(
        byte_level(), _SETTINGS | {"added_tokens_decoder": _decoder(rstrip=True)}
    ),
    "added_tokens.json": lambda: _folder(
        _lacking(*_LAST),
        **{"added_tokens.json": {entry["content"]: int(i) for i, entry in _decoder().items()}},
    ),
    "tokens that are only named": lambda: _folder(
        _lacking(*_LAST), _SETTINGS | {"eos_token": _LAST[0], "pad_token": _LAST[1]}
    ),
    "tokens in a list of special ones": lambda: _folder(
        _lacking(*_LAST), _SETTINGS | {"extra_special_tokens": [*_LAST]}
    ),
    "words that are special": lambda: _folder(
        byte_level(), _SETTINGS | {"pad_token": "!", "mask_token": "[PAD]"}
    ),
    "specials among the pieces": lambda: _folder(
        _among_pieces(), {"chat_template": PLAIN}, **{"special_tokens_map.json": _SPECIAL_MAP_MORE}
    ),
    "no special tokens": lambda: _folder(byte_level(), {"chat_template": PLAIN}),
    "tokens that take blanks": lambda: _folder(_stripping(byte_level())),
    "a space before every first word": lambda: _folder(metaspace("always")),
    "a space before the first word": lambda: _folder(metaspace("first") | {"post_processor": None}),
    "a space before the first of a text": lambda: _folder(
        metaspace("first"), _SETTINGS | {"chat_template": PLAIN.removeprefix("{{ bos_token }}")}
    ),
    "no space before the first word": lambda: _folder(metaspace("never")),
    "unigram": lambda: _folder(unigram()),
}


def write(name: str, folder: Path) -> Path:
    """Write the folder of a layout, without weights."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for file, content in LAYOUTS[name]().items():
        path = folder / file
        path.parent.mkdir(exist_ok=True)
        text = content if isinstance(content, str) else json.dumps(content)
        path.write_text(text, "utf-8")
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": SIZE,
        "max_position_embeddings": 512, "hidden_size": 64, "num_hidden_layers": 1,
        "num_attention_heads": 2, "intermediate_size": 64, "eos_token_id": 2, "bos_token_id": 1,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return folder
