"""Botocore's client for a bucket, made quickly and set to what every server of the protocol understands.

Rules for editing: opens no connection; credentials go to botocore and nowhere else.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, cast

import botocore.session
from botocore.config import Config
from botocore.loaders import Loader, create_loader

from remote_trainer.errors import ConfigError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

    from remote_trainer.config import S3Settings


def make_client(settings: S3Settings, *, connections: int) -> S3Client:
    """Return a client with at most so many connections at once. ConfigError if the bundle of certificates is not there."""
    if settings.ca_bundle and not settings.ca_bundle.is_file():
        raise ConfigError(f"s3.ca_bundle: {settings.ca_bundle} is not there")
    session = botocore.session.get_session()
    session.register_component("data_loader", _descriptions(session.get_config_variable("data_path")))
    client = session.create_client(
        "s3",
        endpoint_url=settings.endpoint or None,
        region_name=settings.region,
        aws_access_key_id=settings.key_id or None,
        aws_secret_access_key=settings.secret_key.get_secret_value() or None,
        verify=str(settings.ca_bundle) if settings.ca_bundle else None,
        config=Config(
            signature_version="s3v4",
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            s3={"addressing_style": "path" if settings.path_style else "auto"},
            retries={"mode": "standard", "total_max_attempts": 4},
            connect_timeout=30,  # and for a piece of 16 kB to leave
            read_timeout=120,
            max_pool_connections=connections,
        ),
    )
    return cast("S3Client", client)


@functools.cache
def _descriptions(folders: str | None) -> Loader:
    """Return what reads botocore's descriptions of services, and keeps them: to read that of S3 is most of the making of a client."""
    return create_loader(folders)
