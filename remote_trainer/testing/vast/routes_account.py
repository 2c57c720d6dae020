"""The dialect of the account: who, its keys, secrets and sub-accounts, its scheduler and its log.

Rules for editing: as in ``routes``.
"""

from __future__ import annotations

from decimal import Decimal

from remote_trainer.testing.vast.account import Key
from remote_trainer.testing.vast.provider import Provider
from remote_trainer.testing.vast.reply import Refused, Reply, ok, refusal
from remote_trainer.testing.vast.routes import Request, Route


def whoami(sim: Provider, request: Request) -> Reply:
    """Show the account."""
    return Reply(body=sim.account.document())


# -- SSH keys


def show_keys(sim: Provider, request: Request) -> Reply:
    """List the account's keys."""
    return Reply(body=list(sim.account.ssh_keys.values()))


def add_key(sim: Provider, request: Request) -> Reply:
    """Keep a key that instances made from now on let in."""
    return ok(key=sim.account.add_ssh_key(str(request.fields.get("ssh_key") or "").strip(), sim.now))


def delete_key(sim: Provider, request: Request) -> Reply:
    """Forget a key; instances keep it."""
    if sim.account.ssh_keys.pop(request.number, None) is None:
        raise refusal(404, "no_such_ssh_key", f"SSH key {request.number} not found.")
    return ok()


# -- keys of the API, secrets, sub-accounts


def add_api_key(sim: Provider, request: Request) -> Reply:
    """Make a key with permissions of its own; shown this once."""
    wanted = request.fields.get("permissions") or {}
    groups = wanted.get("api") if isinstance(wanted, dict) else None
    if not isinstance(groups, dict):
        raise refusal(400, "invalid_args", "error 400/3467: permissions must be {'api': {…}}")
    made = sim.account.new_key(permissions=groups, name=str(request.fields.get("name") or ""))
    return ok(id=made.id, key=made.value, permissions=wanted)


def show_api_keys(sim: Provider, request: Request) -> Reply:
    """List the account's keys, without what they are."""
    return Reply(body={"apikeys": [key.row() for key in sim.account.keys if key.instance is None and not key.revoked]})


def show_api_key(sim: Provider, request: Request) -> Reply:
    """Show one key, without what it is."""
    return Reply(body=_known_key(sim, request.number).row())


def delete_api_key(sim: Provider, request: Request) -> Reply:
    """Let a key open nothing any more."""
    _known_key(sim, request.number).revoked = True
    return ok()


def _known_key(sim: Provider, number: int) -> Key:
    for key in sim.account.keys:
        if key.id == number and key.instance is None and not key.revoked:
            return key
    raise refusal(404, "not_found", f"API key {number} not found.")


def show_secrets(sim: Provider, request: Request) -> Reply:
    """Show what every instance has in its environment."""
    return ok(secrets=dict(sim.secrets))


def set_secret(sim: Provider, request: Request) -> Reply:
    """Keep one, or change it."""
    sim.secrets[str(request.fields.get("key"))] = str(request.fields.get("value"))
    return ok(msg="Environment variable set.")


def delete_secret(sim: Provider, request: Request) -> Reply:
    """Forget one."""
    if sim.secrets.pop(str(request.fields.get("key")), None) is None:
        raise refusal(404, "not_found", "No such environment variable.")
    return ok(msg="Environment variable deleted.")


def add_subaccount(sim: Provider, request: Request) -> Reply:
    """Make an account below this one, without money of its own."""
    fields, number = request.fields, len(sim.account.children) + 2
    sim.account.children[number] = {
        "id": number,
        "email": str(fields.get("email") or ""),
        "username": str(fields.get("username") or ""),
        "credit": 0.0,
        "balance": 0,
        "api_key": "",
    }
    return ok(**{name: sim.account.children[number][name] for name in ("id", "email", "username")})


def show_subaccounts(sim: Provider, request: Request) -> Reply:
    """List accounts below this one."""
    return Reply(body={"users": list(sim.account.children.values())})


def transfer_credit(sim: Provider, request: Request) -> Reply:
    """Give some of the credit to an account below this one."""
    amount, recipient = Decimal(str(request.fields.get("amount") or 0)), str(request.fields.get("recipient"))
    child = next((each for each in sim.account.children.values() if recipient in (str(each["id"]), each["email"])), None)
    if child is None or amount <= 0:
        raise refusal(400, "invalid_args", "error 400/3467: no such recipient, or no amount")
    if amount > sim.account.credit:
        raise refusal(400, "insufficient_credit", "Your account lacks credit.")
    sim.account.pay(-amount, sim.now, f"transfer to {recipient}")
    child["credit"] += float(amount)
    return ok(msg="Credit transferred.")


# -- the scheduler


def show_schedule(sim: Provider, request: Request) -> Reply:
    """List scheduled requests."""
    return Reply(body=[job.document() for job in sim.schedule.jobs.values()])


def add_schedule(sim: Provider, request: Request) -> Reply:
    """Schedule a request; one for each instance."""
    if not request.fields.get("api_endpoint") or request.fields.get("start_time") is None:
        raise refusal(400, "invalid_args", "api_endpoint and start_time are needed")
    known = sim.schedule.of_instance(request.fields.get("instance_id"))
    if known is not None:
        body = {"success": False, "error": "already_exists", "msg": "a job exists", "scheduled_job_id": known.id}
        raise Refused(Reply(status=422, body=body))
    return ok(scheduled_job_id=sim.schedule.add(dict(request.fields), sim.now).id)


def change_schedule(sim: Provider, request: Request) -> Reply:
    """Change a scheduled request."""
    _known_job(sim, request.number)
    return ok(scheduled_job_id=sim.schedule.replace(request.number, dict(request.fields), sim.now).id)


def delete_schedule(sim: Provider, request: Request) -> Reply:
    """Take a scheduled request back."""
    _known_job(sim, request.number)
    del sim.schedule.jobs[request.number]
    return ok()


def _known_job(sim: Provider, number: int) -> None:
    if number not in sim.schedule.jobs:
        raise refusal(404, "not_found", f"Scheduled job {number} not found.")


def audit(sim: Provider, request: Request) -> Reply:
    """List what was asked of the account."""
    return Reply(body=list(sim.audit))


_KEYS = "/api/v0/auth/apikeys/"
_JOBS = "/api/v0/commands/schedule_job/"
TABLE = (
    Route(method="GET", path="/api/v0/users/current/", handler=whoami, group="user_read", bare=True),
    Route(method="GET", path="/api/v0/ssh/", handler=show_keys, group="user_read"),
    Route(method="POST", path="/api/v0/ssh/", handler=add_key, group="user_write"),
    Route(method="DELETE", path="/api/v0/ssh/{}/", handler=delete_key, group="user_write"),
    Route(method="POST", path=_KEYS, handler=add_api_key, group="user_write"),
    Route(method="GET", path=_KEYS, handler=show_api_keys, group="user_read"),
    Route(method="GET", path=_KEYS + "{}/", handler=show_api_key, group="user_read"),
    Route(method="DELETE", path=_KEYS + "{}/", handler=delete_api_key, group="user_write"),
    Route(method="GET", path="/api/v0/secrets/", handler=show_secrets, group="user_read"),
    Route(method="POST", path="/api/v0/secrets/", handler=set_secret, group="user_write"),
    Route(method="PUT", path="/api/v0/secrets/", handler=set_secret, group="user_write"),
    Route(method="DELETE", path="/api/v0/secrets/", handler=delete_secret, group="user_write"),
    Route(method="POST", path="/api/v0/users/", handler=add_subaccount, group="user_write"),
    Route(method="GET", path="/api/v0/subaccounts/", handler=show_subaccounts, group="user_read", bare=True),
    Route(method="PUT", path="/api/v0/commands/transfer_credit/", handler=transfer_credit, group="billing_write"),
    Route(method="GET", path=_JOBS, handler=show_schedule, group="instance_read"),
    Route(method="POST", path=_JOBS, handler=add_schedule, group="instance_write"),
    Route(method="PUT", path=_JOBS + "{}/", handler=change_schedule, group="instance_write"),
    Route(method="DELETE", path=_JOBS + "{}/", handler=delete_schedule, group="instance_write"),
    Route(method="GET", path="/api/v0/audit_logs/", handler=audit, group="misc"),
)
