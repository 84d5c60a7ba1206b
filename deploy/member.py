"""A member in a container: fits deploy/patroni.yml to where it runs, and becomes Patroni.

Reads POSTGRES_PASSWORD, REPLICATION_PASSWORD and PATRONI_PASSWORD, and ETCD_HOSTS (default: those of
deploy/compose.yaml).
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import yaml

TEMPLATE = Path("/etc/patroni/template.yml")
CONFIGURATION = Path("/tmp/patroni.yml")
ETCD = "etcd1:2379,etcd2:2379,etcd3:2379"


def fitted(document: dict[str, Any], name: str, environment: dict[str, str]) -> dict[str, Any]:
    """The template, for the member that is called ``name``."""
    document["name"] = name
    document["restapi"]["connect_address"] = f"{name}:8008"
    document["restapi"]["authentication"]["password"] = environment["PATRONI_PASSWORD"]
    document["etcd3"]["hosts"] = environment.get("ETCD_HOSTS", ETCD).split(",")
    server = document["postgresql"]
    server["connect_address"] = f"{name}:5432"
    server["pgpass"] = "/tmp/pgpass"
    server["authentication"]["superuser"]["password"] = environment["POSTGRES_PASSWORD"]
    server["authentication"]["replication"]["password"] = environment["REPLICATION_PASSWORD"]
    # The network between the containers is theirs alone.
    server["pg_hba"] = ["host replication replicator all scram-sha-256", "host all all all scram-sha-256"]
    del server["parameters"], document["watchdog"]
    return document


def main() -> None:
    document = fitted(yaml.safe_load(TEMPLATE.read_text()), socket.gethostname(), dict(os.environ))
    CONFIGURATION.touch(mode=0o600)
    CONFIGURATION.write_text(yaml.safe_dump(document))
    os.execvp("patroni", ["patroni", str(CONFIGURATION)])


if __name__ == "__main__":
    main()
