"""A replicated log on this machine: etcd and a Patroni group of PostgreSQL servers, on loopback.

For development, for tests and to see a failover happen; a group for production is the same parts on several
machines (``deploy/``).  Needs the extra ``cluster``.
"""

from logstore.cluster.group import LocalCluster
from logstore.cluster.state import ClusterStatus, MemberStatus

__all__ = ["ClusterStatus", "LocalCluster", "MemberStatus"]
