"""Where the MongoDB store lies and what its collections look like: client, indexes, validators, errors.

Rules for editing: a change of the layout raises ``LAYOUT`` and is made by ``migrate``; ``translated`` is the one place that knows
the client's exceptions. A URL may carry a password: only ``described`` may be shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from pymongo import ASCENDING, DESCENDING, AsyncMongoClient, IndexModel
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import (
    BulkWriteError,
    CollectionInvalid,
    ConfigurationError,
    InvalidName,
    InvalidURI,
    OperationFailure,
    PyMongoError,
)
from pymongo.read_concern import ReadConcern
from pymongo.write_concern import WriteConcern

from remote_trainer.document import to_json
from remote_trainer.errors import ConfigError, InvariantBroken, RemoteTrainerError, StoreUnavailable
from remote_trainer.model import Job
from remote_trainer.store import records

Document = dict[str, Any]
Client = AsyncMongoClient[Document]
Database = AsyncDatabase[Document]

LAYOUT = 2

#: When the lease of a job ends that nobody holds.
NEVER = datetime(1970, 1, 1, tzinfo=UTC)

#: Seconds until a server that does not answer counts as unreachable, unless the URL says otherwise.
PATIENCE_S = 10

_REFUSED = {13, 18, 8000}  # Unauthorized, AuthenticationFailed, Atlas's own
_INVALID = 121  # DocumentValidationFailure
_DUPLICATE = 11000

_JOB_SCHEMA = {
    "bsonType": "object",
    "required": [
        "tenant",
        "name",
        "priority",
        "created_us",
        "phase",
        "finished",
        "schema",
        "document",
        "token",
        "holder",
        "expires",
        "saves",
    ],
    "properties": {
        "_id": {"bsonType": "string"},
        "tenant": {"bsonType": "string"},
        "name": {"bsonType": "string"},
        "priority": {"bsonType": ["int", "long"]},
        "created_us": {"bsonType": ["int", "long"]},
        "phase": {"bsonType": "string"},
        "finished": {"bsonType": "bool"},
        "schema": {"bsonType": ["int", "long"]},
        "document": {"bsonType": "string"},
        "token": {"bsonType": ["int", "long"]},
        "holder": {"bsonType": ["string", "null"]},
        "expires": {"bsonType": "date"},
        "cancel_at": {"bsonType": "date"},
        "saves": {"bsonType": ["int", "long"]},
    },
}
_RECORD_SCHEMA = {
    "bsonType": "object",
    "required": ["job", "kind", "seq", "body"],
    "properties": {"kind": {"enum": ["event", "metric"]}, "body": {"bsonType": "string"}},
}
_LOG_SCHEMA = {
    "bsonType": "object",
    "required": ["job", "stream", "start", "bytes"],
    "properties": {"bytes": {"bsonType": "binData"}},
}

_ACCOUNT_SCHEMA = {
    "bsonType": "object",
    "required": ["version", "seq", "micros", "opened", "tail"],
    "properties": {"micros": {"bsonType": ["int", "long"]}, "opened": {"bsonType": "bool"}},
}
_ENTRY_SCHEMA = {
    "bsonType": "object",
    "required": ["tenant", "seq", "body"],
    "properties": {"tenant": {"bsonType": "string"}, "body": {"bsonType": "string"}},
}

_UNFINISHED = {"finished": False}

COLLECTIONS: dict[str, tuple[Document, list[IndexModel]]] = {
    "jobs": (
        _JOB_SCHEMA,
        [
            IndexModel(
                [("tenant", ASCENDING), ("name", ASCENDING)],
                name="unfinished_name",
                unique=True,
                partialFilterExpression=_UNFINISHED,
            ),
            IndexModel(
                [("priority", DESCENDING), ("created_us", ASCENDING), ("_id", ASCENDING)],
                name="to_claim",
                partialFilterExpression=_UNFINISHED,
            ),
            IndexModel([("created_us", DESCENDING), ("_id", DESCENDING)], name="newest"),
            IndexModel([("holder", ASCENDING)], name="held", partialFilterExpression={"holder": {"$type": "string"}}),
            IndexModel([("changed", ASCENDING)], name="changed"),
            IndexModel([("tenant", ASCENDING)], name="unposted", partialFilterExpression={"entries": {"$exists": True}}),
        ],
    ),
    "records": (
        _RECORD_SCHEMA,
        [IndexModel([("job", ASCENDING), ("kind", ASCENDING), ("seq", ASCENDING)], name="of_job", unique=True)],
    ),
    "logs": (
        _LOG_SCHEMA,
        [IndexModel([("job", ASCENDING), ("stream", ASCENDING), ("start", ASCENDING)], name="of_stream", unique=True)],
    ),
    "accounts": (_ACCOUNT_SCHEMA, []),
    "ledger": (_ENTRY_SCHEMA, [IndexModel([("tenant", ASCENDING), ("seq", ASCENDING)], name="of_tenant", unique=True)]),
}


def new_document(job: Job) -> Document:
    """Return the document of a job that was never claimed."""
    return {
        "_id": job.id,
        "tenant": job.tenant,
        "name": job.name,
        "priority": job.priority,
        "created_us": records.microseconds(job.created_at),
        "phase": job.phase,
        "finished": False,
        "schema": job.schema,
        "document": to_json(job).decode(),
        "token": 0,
        "holder": None,
        "expires": NEVER,
        "saves": 0,
        "streams": [],
        "counts": {"event": 0, "metric": 0},
        "tail": {"records": [], "logs": []},
    }


def described(url: str) -> str:
    """Return what may be shown of a URL: scheme, hosts, database. Cut by hand: a password may hold anything, even a slash."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2].partition('?')[0]}"


def connected(url: str) -> tuple[Client, Database]:
    """Return client and database of a URL; nothing is sent yet."""
    settings: Document = {"tz_aware": True, "appname": "remote-trainer", "retryWrites": True, "retryReads": True}
    for option in ("serverSelectionTimeoutMS", "connectTimeoutMS"):
        if option.lower() not in url.lower():
            settings[option] = PATIENCE_S * 1000
    if "sockettimeoutms" not in url.lower():
        settings["socketTimeoutMS"] = 3 * PATIENCE_S * 1000
    try:
        client: Client = AsyncMongoClient(url, **settings)
        name = client.get_default_database().name
    except (InvalidURI, ConfigurationError, InvalidName, ValueError, TypeError):
        raise ConfigError(  # what the client says may hold the password
            f"{described(url)} is no usable MongoDB URL: write mongodb://user:password@host:27017/database, with special "
            "characters of user and password percent-encoded"
        ) from None
    # Without the journal a majority can forget what it acknowledged; without a time limit a lost majority blocks for ever.
    durable = WriteConcern("majority", j=True, wtimeout=PATIENCE_S * 1000)
    return client, client.get_database(name, write_concern=durable, read_concern=ReadConcern("majority"))


async def copy_new(collection: AsyncCollection[Document], rows: Sequence[Document]) -> None:
    """Insert rows with fixed keys, but for those that are there."""
    if not rows:
        return
    try:
        await collection.insert_many(rows, ordered=False)
    except BulkWriteError as error:
        details = error.details or {}
        if details.get("writeConcernErrors") or any(each["code"] != _DUPLICATE for each in details["writeErrors"]):
            raise


async def lay_out(database: Database) -> None:
    """Create or update collections, validators and indexes."""
    for name, (schema, indexes) in COLLECTIONS.items():
        validator = {"$jsonSchema": schema}
        try:
            await database.create_collection(name, validator=validator)
        except CollectionInvalid:  # it is there
            await database.command("collMod", name, validator=validator)
        await database[name].create_indexes(indexes)


def translated(error: PyMongoError, place: str) -> RemoteTrainerError:
    """Return our error for one of the client's."""
    code = error.code if isinstance(error, OperationFailure) else None
    if isinstance(error, BulkWriteError) and error.details and error.details["writeErrors"]:
        code = error.details["writeErrors"][0]["code"]
    if code in _REFUSED:
        return ConfigError(f"the job store {place} refuses us (code {code}): check user, password and roles in its URL")
    if code == _INVALID:
        return InvariantBroken(f"the job store {place} refuses a document that breaks its schema")
    if isinstance(error, ConfigurationError):
        return ConfigError(f"the job store {place} cannot be used with these settings: {type(error).__name__}")
    return StoreUnavailable(f"the job store {place} cannot be reached or failed ({type(error).__name__}, code {code})")
