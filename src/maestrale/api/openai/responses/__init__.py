"""OpenAI's Responses API: items in, items out, kept on the server where a client asks for it."""
