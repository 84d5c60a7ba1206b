"""A DSN is never shown with its password."""

import pytest

from logstore._core.masking import masked


@pytest.mark.parametrize(
    ("dsn", "shown"),
    [
        ("postgresql://ann:s3cret@db:5432/log", "postgresql://ann:***@db:5432/log"),
        ("postgres://ann:@db/log?sslmode=require", "postgres://ann:***@db/log?sslmode=require"),
        ("postgresql://ann@db/log?password=s3cret&x=1", "postgresql://ann@db/log?password=***&x=1"),
        ("postgresql:///log?host=/tmp&sslpassword=s3cret", "postgresql:///log?host=/tmp&sslpassword=***"),
        ("postgresql://db:5432/log", "postgresql://db:5432/log"),
        ("host=db password=s3cret user=ann", "host=db password=*** user=ann"),
        (r"password = 's3 \'cret' host=db", "password = *** host=db"),
        (r"host=db password=s3\ cret", "host=db password=***"),
        ("host=/tmp dbname=log", "host=/tmp dbname=log"),
    ],
)
def test_masked(dsn: str, shown: str) -> None:
    assert masked(dsn) == shown
