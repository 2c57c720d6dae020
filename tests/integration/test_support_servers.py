"""The database and object stores of the tests keep what they promised, and can be taken away."""

from __future__ import annotations

from collections.abc import Callable

import pymongo
import pytest
from botocore.exceptions import ConnectionClosedError
from pymongo.write_concern import WriteConcern

from tests.support import s3
from tests.support.mongo import MongoServer
from tests.support.s3 import S3Bucket, S3Server


def test_acknowledged_write_survives_kill(own_mongo: MongoServer) -> None:
    """A write acknowledged with journal=True is there after `kill -9` and a new start."""
    with pymongo.MongoClient[dict[str, int]](own_mongo.uri) as client:
        things = client["test"].get_collection("things", write_concern=WriteConcern("majority", j=True))
        things.insert_one({"_id": 1})
        own_mongo.kill()
        own_mongo.start()
        assert things.find_one() == {"_id": 1}


def test_shared_database_answers(mongo_uri: str) -> None:
    """The database of the run answers a ping."""
    with pymongo.MongoClient[dict[str, int]](mongo_uri) as client:
        assert client.admin.command("ping")["ok"] == 1


def test_object_comes_back_over_tls(s3_bucket: S3Bucket) -> None:
    """What was put into a bucket over https is read back as it was."""
    client = s3_bucket.server.client()
    client.put_object(Bucket=s3_bucket.bucket, Key="a/b", Body=bytes(range(256)))
    assert client.get_object(Bucket=s3_bucket.bucket, Key="a/b")["Body"].read() == bytes(range(256))


@pytest.mark.parametrize("kind", s3.KINDS)
def test_store_that_was_down_has_its_objects(kind: s3.Kind, start_s3: Callable[[s3.Kind], S3Server]) -> None:
    """A stopped store breaks connections; started again it has what it had."""
    server = start_s3(kind)
    bucket = server.new_bucket().bucket
    server.client().put_object(Bucket=bucket, Key="kept", Body=b"1")
    server.stop()
    with pytest.raises(ConnectionClosedError):
        server.client(attempts=1).list_buckets()
    server.start()
    assert server.client().get_object(Bucket=bucket, Key="kept")["Body"].read() == b"1"
