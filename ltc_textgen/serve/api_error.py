"""Errors of the API, in the form that OpenAI's clients read."""

from typing import Any

TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "invalid_request_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "service_unavailable_error",
}
"""The `type` of an error by its status."""


class ApiError(Exception):
    """An answer that is an error.

    Args:
        status: HTTP status, a key of `TYPES`.
        message: What is wrong, and what to do; one line.
        param: Field of the request that it is about, such as "temperature" or "prompt.3".
        code: Machine-readable reason, such as "queue_full".
        headers: Headers of the answer; `Retry-After` where a later try may succeed.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = headers or {}

    def body(self) -> dict[str, Any]:
        """The document of the answer, or of an error event in a stream."""
        error = {"message": self.message, "type": TYPES[self.status], "param": self.param, "code": self.code}
        return {"error": error}


def bad_request(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """The error of a request that cannot work, whenever it is sent."""
    return ApiError(400, message, param, code)


def engine_error(message: str) -> ApiError:
    """The error of a model whose logits are NaN or infinite. A header asks clients not to retry."""
    return ApiError(500, message, code="engine_error", headers={"x-should-retry": "false"})
