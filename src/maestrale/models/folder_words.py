"""What a Hugging Face folder says of its model beside the weights, taken as transformers takes it.

Special tokens come from tokenizer_config.json (or, in old folders, special_tokens_map.json), what
stands around plain text from tokenizer.json's post-processor, the ends of an answer from every
file that names some, chat templates from files of their own before the settings.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from maestrale.errors import ModelError
from maestrale.models.gguf_file import LFS_POINTER
from maestrale.models.hf_tokenizer import ids_of, spelled_by_merges
from maestrale.text_files import decode_text

TEMPLATE_FILE, TEMPLATE_FOLDER = "chat_template.jinja", "additional_chat_templates"
_SPECIAL = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))


def read_json(path: Path, *, optional: bool = False) -> dict[str, Any]:
    """A JSON object from a model's file. Raises: ModelError when it is none."""
    if optional and not path.is_file():
        return {}
    content = path.read_bytes()
    if content.startswith(LFS_POINTER):
        raise ModelError(
            f"{path} is a Git LFS pointer, not the file that it stands for. Fetch that with "
            "`git lfs pull`, or download it from the model's page."
        )
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not valid JSON: {error}. Download it again.") from error
    if not isinstance(document, dict):
        raise ModelError(f"{path} is not a JSON object. Download it again.")
    return document


def read_settings(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json, with what older folders keep in a file of its own."""
    settings = read_json(folder / "tokenizer_config.json", optional=True)
    if "added_tokens_decoder" in settings:
        return settings
    return settings | read_json(folder / "special_tokens_map.json", optional=True)


def special_tokens(settings: Mapping[str, Any]) -> dict[str, str]:
    """What a chat template calls bos_token, eos_token ...; also those with names of their own."""
    found = {name: _content(settings.get(name)) for name in _SPECIAL}
    found |= {
        name: _content(value)
        for name, value in settings.items()
        if name.endswith("_token") and name not in found and not isinstance(value, bool)
    }
    extra = settings.get("extra_special_tokens")
    if isinstance(extra, Mapping):
        found |= {str(name): _content(value) for name, value in extra.items()}
    return {name: content for name, content in found.items() if content is not None}


def end_tokens(
    folder: Path, eos: str | None, ids: Mapping[str, int], size: int, *documents: Mapping[str, Any]
) -> tuple[int, ...]:
    """The tokens that end an answer: `eos`, the tokenizer's own, and those of all `documents`.

    Only those of `size` rows of logits can ever come.

    Raises: ModelError when there is none.
    """
    found = [ids[eos]] if eos is not None and eos in ids else []
    for document in documents:
        ends: Any = document.get("eos_token_id")
        found += [end for end in (ends if isinstance(ends, list) else [ends]) if _is_id(end)]
    if found and min(found) >= size:
        raise ModelError(
            f"{folder} names the token {min(found)} as its end of text, which its vocabulary of "
            f"{size} tokens (vocab_size in config.json) doesn't have. Download it again."
        )
    if not found:
        raise ModelError(
            f"{folder} names no end-of-text token (eos_token_id in config.json or "
            "generation_config.json, eos_token in tokenizer_config.json), so answers would never "
            "end."
        )
    return tuple(dict.fromkeys(end for end in found if end < size))


def around_text(
    tokenizer: Mapping[str, Any], ids: Mapping[str, int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The tokens that the post-processor of a tokenizer.json puts before and after a text."""
    for processor in _processors(tokenizer.get("post_processor")):
        kind = processor.get("type")
        if kind == "TemplateProcessing":
            return _template_processing(processor, ids)
        if kind in ("BertProcessing", "RobertaProcessing"):
            first, last = processor.get("cls"), processor.get("sep")
            if isinstance(first, list) and isinstance(last, list):
                return tuple(first[1:]), tuple(last[1:])
    return (), ()


def chat_templates(folder: Path, settings: Mapping[str, Any]) -> tuple[str | None, dict[str, str]]:
    """The chat template, and the others by name (tool_use, rag).

    Templates in files of their own stand before those in tokenizer_config.json.
    """
    named: dict[str, str] = {}
    template = settings.get("chat_template")
    if template is None:  # where processors of images kept it
        template = read_json(folder / "chat_template.json", optional=True).get("chat_template")
    if isinstance(template, str):
        named["default"] = template
    elif isinstance(template, Mapping):
        named = {str(name): text for name, text in template.items() if isinstance(text, str)}
    elif isinstance(template, list):
        for entry in template:
            name, text = (
                (entry.get("name"), entry.get("template")) if isinstance(entry, Mapping) else (0, 0)
            )
            if isinstance(name, str) and isinstance(text, str):
                named[name] = text
    files = {}
    if (folder / TEMPLATE_FILE).is_file():
        files["default"] = _read_text(folder / TEMPLATE_FILE)
    for file in sorted((folder / TEMPLATE_FOLDER).glob("*.jinja")):
        files[file.stem] = _read_text(file)
    if files:
        named = files if "default" in files else {**_only_default(named), **files}
    return named.pop("default", None), named


def added_tokens(folder: Path, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The tokens that settings and added_tokens.json add, as tokenizer.json has them."""
    special = set(special_tokens(settings).values())
    found: dict[int, dict[str, Any]] = {}
    decoder = settings.get("added_tokens_decoder")
    if not isinstance(decoder, Mapping):
        for name, token in read_json(folder / "added_tokens.json", optional=True).items():
            if _is_id(token):
                found[token] = _added(token, {"content": name, "special": name in special})
        return [entry for _, entry in sorted(found.items())]
    for key, entry in decoder.items():
        if isinstance(entry, Mapping) and isinstance(entry.get("content"), str) and key.isdigit():
            found[int(key)] = _added(int(key), entry)
    return [entry for _, entry in sorted(found.items())]


def completed(
    document: Mapping[str, Any], folder: Path, settings: Mapping[str, Any]
) -> Mapping[str, Any]:
    """A tokenizer.json with the tokens that its settings add; the same object if they add none.

    A token that is in the vocabulary keeps its id there, others are numbered on. A word of text
    that is named as a special token (`!` for padding) stays one.
    """
    own = [dict(token) for token in document.get("added_tokens") or ()]
    entries = {token["content"]: token for token in own}
    ids = ids_of(document)
    following = max(ids.values(), default=-1) + 1
    listed = added_tokens(folder, settings)
    if not isinstance(settings.get("added_tokens_decoder"), Mapping):
        listed = [token for token in listed if token["content"] not in entries]
    known = {token["content"] for token in listed} | entries.keys() | spelled_by_merges(document)
    named = [name for name in _named(settings) if name not in known]
    listed += [_added(0, {"content": name, "special": True}) for name in named]
    changed = False
    for token in listed:
        name = token["content"]
        if name not in ids:
            ids[name], following = following, following + 1
        token = {**token, "id": ids[name]}
        changed |= entries.get(name) != token
        entries[name] = token
    if not changed:
        return document
    return {**document, "added_tokens": sorted(entries.values(), key=lambda token: token["id"])}


def _named(settings: Mapping[str, Any]) -> list[str]:
    """The special tokens that settings name, in the order in which transformers adds them."""
    names = [*special_tokens(settings).values()]
    for key in ("extra_special_tokens", "additional_special_tokens"):
        more = settings.get(key)
        names += [
            name for each in (more if isinstance(more, list) else ()) if (name := _content(each))
        ]
    return list(dict.fromkeys(name for name in names if name))


def _added(token: int, entry: Mapping[str, Any]) -> dict[str, Any]:
    special = bool(entry.get("special"))
    return {
        "id": token,
        "content": entry["content"],
        "single_word": bool(entry.get("single_word")),
        "lstrip": bool(entry.get("lstrip")),
        "rstrip": bool(entry.get("rstrip")),
        "normalized": bool(entry.get("normalized", not special)),
        "special": special,
    }


def _only_default(named: Mapping[str, str]) -> dict[str, str]:
    return {name: text for name, text in named.items() if name == "default"}


def _content(value: Any) -> str | None:
    """A special token's text: as such, or an object with its properties."""
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _processors(processor: Any) -> Iterator[Mapping[str, Any]]:
    if not isinstance(processor, Mapping):
        return
    if processor.get("type") == "Sequence":
        for inner in processor.get("processors") or ():
            yield from _processors(inner)
    else:
        yield processor


def _template_processing(
    processor: Mapping[str, Any], ids: Mapping[str, int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    parts: tuple[list[int], list[int]] = ([], [])
    seen_text = 0
    known = processor.get("special_tokens")
    known = known if isinstance(known, Mapping) else {}
    for piece in processor.get("single") or ():
        if "Sequence" in piece:
            seen_text = 1
        elif isinstance(piece.get("SpecialToken"), Mapping):
            name = piece["SpecialToken"].get("id")
            entry = known.get(name)
            stated = entry.get("ids") if isinstance(entry, Mapping) else None
            parts[seen_text].extend(stated or ([ids[name]] if name in ids else []))
    return tuple(parts[0]), tuple(parts[1])


def _read_text(path: Path) -> str:
    """A template's source, without the byte order mark that Windows' editors write."""
    try:
        return decode_text(path.read_bytes())
    except ValueError as error:
        raise ModelError(f"{path} is no chat template: {error}") from error
