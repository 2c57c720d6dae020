"""What Vast.ai's replies mean: its many ways to say no, each as the error that is acted on."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest

from remote_trainer.drivers.vastai.envelope import Gone, OfferGone, Reply, read
from remote_trainer.errors import Ambiguous, DriverError, Permanent, Transient

NOW = 1_790_000_000.0


def reply(status: int, body: object, headers: Mapping[str, str] | None = None) -> Reply:
    return Reply(status, headers or {}, body if isinstance(body, str) else json.dumps(body))


def refused(status: int, body: object, operation: str = "list", **headers: str) -> DriverError:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    with pytest.raises(DriverError) as caught:
        read(reply(status, body, named), operation, now=NOW)
    return caught.value


def test_success_is_a_2xx_that_does_not_deny_it() -> None:
    """The body is handed on as it came."""
    assert read(reply(200, {"success": True, "new_contract": 7}), "create", now=NOW) == {"success": True, "new_contract": 7}
    assert read(reply(200, {"instances": None}), "list", now=NOW) == {"instances": None}
    assert read(reply(200, []), "audit", now=NOW) == []


KEYLESS = {"success": False, "error": "auth_error", "msg": "This action requires login."}
WRONG_KEY = {"success": False, "error": "auth_error", "msg": "Invalid user key"}
NO_SUCH_ASK = {
    "success": False,
    "error": "invalid_args",
    "msg": "error 404/3603: no_such_ask Instance type by id 5 is not available.",
}


@pytest.mark.parametrize(
    ("status", "body", "operation", "kind"),
    [
        (403, KEYLESS, "list", Permanent),
        (404, WRONG_KEY, "destroy", Permanent),
        (404, WRONG_KEY, "create", Permanent),
        (401, {"msg": "lacks the user_read permission group"}, "account", Permanent),
        (404, {"error": "session", "msg": "Session expired. Please log in again."}, "list", Permanent),
        (404, {"success": False, "error": "no_such_instance", "msg": "…"}, "destroy", Gone),
        (404, {"error": "not_found"}, "destroy", Gone),
        (404, NO_SUCH_ASK, "create", OfferGone),
        (410, {"success": False, "error": "no_such_ask"}, "create", OfferGone),
        (409, {"error": "conflict"}, "create", OfferGone),
        (503, "the service is not available", "create", Ambiguous),
        (408, "", "create", Ambiguous),
        (401, {"msg": "lacks the instance_write permission group"}, "create", Permanent),
        (400, {"error": "insufficient_credit"}, "create", Permanent),
        (402, {"msg": "Insufficient credit."}, "create", Permanent),
        (400, {"error": "invalid_args", "msg": "error 400/3467"}, "create", Permanent),
        (410, {"error": "deprecated_endpoint", "msg": "…"}, "list", Permanent),
        (429, "API requests too frequent", "search", Transient),
        (429, {"detail": "API requests too frequent endpoint threshold=2.0"}, "create", Transient),
        (500, {"error": "server_error"}, "create", Ambiguous),
        (504, "<html>gateway</html>", "create", Ambiguous),
        (502, "", "list", Transient),
        (200, {"success": False, "error": "odd"}, "create", Ambiguous),
        (200, {"success": False, "error": "odd"}, "list", Transient),
        (200, {"success": False, "error": "invalid_request", "msg": "there is no bid"}, "bid", Permanent),
        (404, {"error": "no_such_instance"}, "bid", Gone),
        (200, "not JSON", "list", Transient),
    ],
)
def test_what_a_refusal_means(status: int, body: object, operation: str, kind: type[DriverError]) -> None:
    """Clear refusals are permanent, doubt about a request to rent is ambiguous, everything else may be tried again."""
    assert type(refused(status, body, operation)) is kind


def test_a_wrong_key_never_passes_for_an_instance_that_is_gone() -> None:
    """Both are answered with 404: a destroy that was refused for its key must not count as done."""
    error = refused(404, WRONG_KEY, "destroy")
    assert not isinstance(error, Gone)
    assert "VAST_API_KEY" in str(error)


def test_an_instance_that_was_parked_is_named() -> None:
    """A refused bid may leave a stopped instance behind, which costs money."""
    for word in ("resources_unavailable", "never heard of"):
        error = refused(200, {"success": False, "error": word, "new_contract": 99}, "create")
        assert isinstance(error, OfferGone)
        assert error.leftover == 99


@pytest.mark.parametrize(
    ("body", "headers", "wait_s"),
    [
        ("API requests too frequent", {}, 10),
        ("API requests too frequent", {"retry_after": "7"}, 7),
        ({"error": "rate_limit_exceeded", "retry_after": 4}, {}, 4),
        ({"error": "search_quota_exceeded"}, {"x_ratelimit_reset": str(NOW + 5000)}, 5000),
        ({"error": "search_quota_exceeded"}, {}, 3600),
        ({"error": "search_quota_exceeded"}, {"x_ratelimit_reset": "1e300"}, 86400),
        ("API requests too frequent", {"retry_after": "inf"}, 600),
    ],
)
def test_how_long_a_limit_lasts(body: object, headers: dict[str, str], wait_s: float) -> None:
    """The provider's own word counts; a spent quota is not asked for again before it is renewed."""
    error = refused(429, body, "search", **headers)
    assert isinstance(error, Transient)
    assert error.retry_after_s == wait_s


def test_a_request_to_rent_that_came_too_soon_waits_for_its_punishment_to_be_over() -> None:
    """Twelve seconds are added to its interval."""
    error = refused(429, "API requests too frequent", "create")
    assert isinstance(error, Transient)
    assert error.retry_after_s == 18


def test_a_message_quotes_little_of_a_reply() -> None:
    """A page of HTML is no message."""
    assert len(str(refused(502, "x" * 100_000))) < 500


def test_no_message_quotes_a_key() -> None:
    """A refusal may carry the key of the instance that it has made all the same; a reason may quote ours."""
    key = "0123456789abcdef" * 4
    for body in (
        {"success": False, "new_contract": 5, "instance_api_key": key},
        {"success": False, "instance_api_key": key},
        {"success": False, "msg": f"Invalid user key {key}"},
        f"no {key}",
    ):
        assert key not in str(refused(200 if isinstance(body, dict) else 502, body, "create"))


def test_a_reply_that_is_nested_without_end_is_no_success() -> None:
    """It is read as what it is: no JSON that anybody means."""
    assert isinstance(refused(200, "[" * 200_000, "list"), Transient)
