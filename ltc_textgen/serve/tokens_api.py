"""Text to token ids and back, as lm-evaluation-harness and playgrounds ask for it."""

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ltc_textgen.data.normalize import normalize
from ltc_textgen.errors import UsageError
from ltc_textgen.serve.api_error import bad_request
from ltc_textgen.serve.requests import Body, check_tokens, parse
from ltc_textgen.serve.server import read_json, server_of


class TokenizeRequest(Body):
    """POST /tokenize. `content` is llama.cpp's name of `prompt`."""

    model: str | None = None
    prompt: str | None = None
    content: str | None = None
    add_special_tokens: bool = False
    return_token_strs: bool = False


class DetokenizeRequest(Body):
    """Body of POST /detokenize."""

    model: str | None = None
    tokens: list[Any]


async def tokenize(request: Request) -> Response:
    """Text to token ids."""
    body = parse(TokenizeRequest, await read_json(request))
    served = server_of(request).ready_models().find(body.model)
    text = body.prompt if body.prompt is not None else body.content
    if text is None:
        raise bad_request("prompt: give the text to tokenize", "prompt")
    try:
        # Text never spells a special token, but lm-evaluation-harness asks for the EOS token's id in this way.
        alone = text == served.tokenizer.eos_token
        ids = [served.tokenizer.eos_token_id] if alone else served.tokenizer.encode(normalize(text, "prompt"))
    except UsageError as error:
        raise bad_request(str(error), "prompt") from None
    if body.add_special_tokens:
        ids = [served.tokenizer.eos_token_id, *ids]
    document = {"tokens": ids, "count": len(ids), "max_model_len": server_of(request).settings.limits.max_prompt_tokens}
    if body.return_token_strs:
        document["token_strs"] = [served.spelling[token] for token in ids]
    return JSONResponse(document)


async def detokenize(request: Request) -> Response:
    """Token ids to text."""
    body = parse(DetokenizeRequest, await read_json(request))
    served = server_of(request).ready_models().find(body.model)
    if body.tokens:
        check_tokens(body.tokens, "tokens")
    try:
        text = served.tokenizer.decode(body.tokens)
    except UsageError as error:
        raise bad_request(f"tokens: {error}", "tokens") from None
    return JSONResponse({"prompt": text, "content": text})


async def tokenizer_info(request: Request) -> Response:
    """Facts about the tokenizer."""
    served = server_of(request).ready_models().find(request.query_params.get("model"))
    tokenizer = served.tokenizer
    return JSONResponse(
        {
            "tokenizer_class": "TextTokenizer",
            "kind": tokenizer.kind,
            "eos_token": tokenizer.eos_token,
            "eos_token_id": tokenizer.eos_token_id,
            "bos_token": tokenizer.eos_token,
            "pad_token": tokenizer.eos_token,
            "vocab_size": tokenizer.vocab_size,
            "chat_template": None,
            "fingerprint": tokenizer.fingerprint,
        }
    )
