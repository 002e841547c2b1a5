"""`maestrale render`: the exact prompt of a request, and its token ids, without serving it."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click

from maestrale.cli.echo import echo
from maestrale.config.reading import load_settings
from maestrale.errors import ModelError
from maestrale.printable import printable
from maestrale.text_files import without_bom

if TYPE_CHECKING:
    from maestrale.prompt.encode import PromptEncoder


@click.command("render")
@click.option("--model", "-m", help="As for 'serve'; Mistral's models need no weights here.")
@click.option(
    "--chat-template",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Jinja chat template to use instead of the model's own.",
)
@click.option("--json", "as_json", is_flag=True, help="As JSON: prompt, token_ids, count.")
@click.argument("file", type=click.File("rb"))
def command(model: str | None, chat_template: Path | None, as_json: bool, file: BinaryIO) -> None:
    """Show the exact prompt that a request becomes, and its token ids.

    FILE is the JSON body of a chat request, or just its list of messages; '-' reads standard
    input. The request goes through the same code as in the server.
    """
    from maestrale.api.http.body import decode
    from maestrale.api.openai.reading import read_conversation
    from maestrale.api.openai.reasoning import read_reasoning
    from maestrale.api.openai.schemas import ChatRequest
    from maestrale.api.openai.tools import read_tools
    from maestrale.chat.options import Options
    from maestrale.chat.thinking import plan
    from maestrale.prompt.jinja import template_variables

    raw = without_bom(file.read()).strip()
    request = decode(b'{"messages":%b}' % raw if raw.startswith(b"[") else raw, ChatRequest)
    encoder = _encoder(model or request.model, chat_template)
    conversation = read_conversation(request)
    wish = read_reasoning(request)
    asked = Options(reasoning=wish.reasoning, template_variables=wish.variables)
    with template_variables(dict(plan(encoder, asked).variables)):
        prompt = encoder.encode_chat(
            conversation.messages,
            tools=[tool.definition for tool in read_tools(request.tools or [])] or None,
            continue_final=conversation.continues,
        )
    ids = list(prompt.token_ids)
    if as_json:
        echo(json.dumps({"prompt": prompt.text, "token_ids": ids, "count": len(ids)}))
        return
    # Byte for byte for a program; a person's terminal obeys no template.
    click.echo(printable(prompt.text) if sys.stdout.isatty() else prompt.text)
    echo()
    echo(f"{len(ids)} tokens: {' '.join(map(str, ids))}")


def _encoder(model: str | None, chat_template: Path | None) -> PromptEncoder:
    """Raises: ModelError, SettingsError."""
    from maestrale.models.catalog import find_model
    from maestrale.models.resolve import prepare
    from maestrale.prompt.encode import encoder_for, encoder_for_name, read_template

    settings = load_settings({"model": model}, os.environ)
    known = find_model(settings.model)
    if known is not None and known.mistral_version is not None:
        if chat_template is not None:
            raise ModelError(
                f"{known.name}'s prompts are made by mistral-common; a chat template can't be "
                "used with it. Leave out --chat-template."
            )
        return encoder_for_name(settings.model)
    folder = prepare(settings.model, settings.cache_dir, _say)
    return encoder_for(folder, read_template(chat_template))


def _say(phase: str, fraction: float | None) -> None:
    if fraction is None:
        echo(f"{phase} ...", err=True)
