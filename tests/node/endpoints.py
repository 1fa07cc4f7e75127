"""The endpoints of vLLM that the servers of a `row` have; plain, for tests without Ray."""

POSTS = (
    *("/v1/completions", "/v1/chat/completions", "/v1/chat/completions/batch", "/v1/responses"),
    *("/v1/messages", "/v1/messages/count_tokens", "/v1/embeddings", "/v1/score", "/v1/rerank"),
    *("/v2/rerank", "/tokenize", "/detokenize", "/pooling", "/classify", "/score", "/rerank"),
    *("/invocations", "/v1/completions/render", "/v1/responses/render", "/inference/v1/generate"),
)
FORMS = ("/v1/audio/transcriptions", "/v1/audio/translations")
