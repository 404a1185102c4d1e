"""What the words of an error mean. provider_quirks.toml has others, with their bodies."""

import pytest

from server.domain.errors import (
    InvalidRequest,
    PromptTooLong,
    QuintetError,
    UpstreamBrokeOff,
    UpstreamFailed,
    UpstreamFull,
    UpstreamQuotaExhausted,
    UpstreamRefused,
    UpstreamRejected,
)
from server.tasks.chat.provider_errors import meaning, read_report

TOO_LONG = [
    "This model's maximum context length is 4097 tokens, however you requested 4927 tokens (3927 in your prompt).",
    "Input is too long for requested model.",
    "input length and `max_tokens` exceed context limit: 197202 + 21333 > 200000, decrease input length",
    "Your input exceeds the context window of this model. Please adjust your input and try again.",
    "The prompt is too long: 140000, model maximum context length: 131071",
    "This model's maximum prompt length is 131072 but the request contains 537812 tokens.",
    "too many tokens: total number of tokens in the prompt cannot exceed 4081 - received 5000.",
    "The input (5000 tokens) is longer than the model's context length (4096 tokens).",
    "Requested token count exceeds the model's maximum context length of 4096 tokens. You requested a total of 5000.",
    "Prompt length (5000) exceeds maximum input length (4096).",
    "Requested tokens (5000) exceed context window of 4096",
    "Range of input length should be [1, 30720]",
    "Prompt 超长",
    "Invalid request: Your request exceeded model token limit: 8192",
    "invalid params, context window exceeds limit (2013)",
    "Please reduce the length of the messages or completion. Current length is 8237 while limit is 8192",
    "Request body too large for gpt-4o model. Max size: 8000 tokens.",
    "the input length exceeds the context length",
    "Input validation error: `inputs` must have less than 1024 tokens. Given: 1300",
    "prompt token count (9000) cannot exceed 4096. Total tokens (prompt + max_tokens) 9999",
    "Number of tokens (757) exceeded maximum context length (512).",
    "The sequence length of 9000 exceeds the limit of 8192 tokens",
    "Prompt has 9000 tokens, but the model's limit is 8191 tokens",
    "Conversation too long: 9000 tokens; the limit is 8192 tokens",
]


@pytest.mark.parametrize("message", TOO_LONG)
@pytest.mark.parametrize("status", [400, 413, 422, 500, 0])
def test_a_prompt_that_is_too_long(message: str, status: int) -> None:
    assert type(meaning(read_report({"error": {"message": message}}), status)) is PromptTooLong


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (400, {"error": {"message": "Invalid value for 'content': expected a string, got null."}}, UpstreamRejected),
        (400, {"error": {"message": "context caching is not supported by this model"}}, UpstreamRejected),
        (400, {"error": {"message": "Invalid 'messages': the last message must be the user's"}}, UpstreamRejected),
        (400, {"error": {"message": "x", "code": "string_above_max_length"}}, PromptTooLong),
        (400, {"error": {"message": "x", "code": "tokens_limit_reached"}}, PromptTooLong),
        (
            401,
            {"error": {"message": "Incorrect API key provided: the key is too long for this context"}},
            UpstreamRefused,
        ),
        (402, "", UpstreamQuotaExhausted),
        (403, {"error": {"message": "The account has insufficient credit"}}, UpstreamQuotaExhausted),
        (403, {"error": {"type": "billing_error"}}, UpstreamQuotaExhausted),
        (429, {"error": {"code": "insufficient_quota"}}, UpstreamQuotaExhausted),
        (429, {"error": {"message": "quota", "type": "exceeded_current_quota_error"}}, UpstreamQuotaExhausted),
        (429, {"error": {"message": "Rate limit: 100000 tokens a minute for the context of this model"}}, UpstreamFull),
        (429, {"error": {"message": "You exceeded your current quota", "status": "RESOURCE_EXHAUSTED"}}, UpstreamFull),
        (429, "Too Many Requests", UpstreamFull),
        (404, {"detail": "Not Found"}, UpstreamRefused),
        (500, {"error": {"message": "The request exceeded its time limit; the maximum is 60 s."}}, UpstreamFailed),
        (0, {"message": "Rate limit of 40,000 input tokens per minute", "code": "rate_limit_error"}, UpstreamFull),
        (405, {"detail": "Method Not Allowed"}, UpstreamRejected),
        (409, {}, UpstreamFailed),
        (500, {"error": {"message": "CUDA out of memory"}}, UpstreamFailed),
        (503, {"error": {"message": "The server is overloaded", "type": "overloaded_error"}}, UpstreamFull),
        (504, "<html>", UpstreamBrokeOff),
        (524, "<html>", UpstreamBrokeOff),
        (400, {"error": {"code": "data_inspection_failed"}}, InvalidRequest),
        (400, {"error": {"innererror": {"code": "ResponsibleAIPolicyViolation"}}}, InvalidRequest),
        (400, {"error": {"metadata": {"raw": '{"error": {"code": "context_length_exceeded"}}'}}}, PromptTooLong),
        (400, [[[[[[[[[[[[{"error": {"code": "insufficient_quota"}}]]]]]]]]]]]], UpstreamRejected),
        (400, {"error": None}, UpstreamRejected),
        (400, {"error": {"message": ["a", {"b": 1.5, "c": True}], "code": None}}, UpstreamRejected),
    ],
)
def test_other_errors(status: int, body: object, kind: type[QuintetError]) -> None:
    assert type(meaning(read_report(body), status)) is kind
