#!/bin/sh
# Behaves as the official image does, as far as testcontainers needs: POSTGRES_USER, POSTGRES_PASSWORD, POSTGRES_DB.
set -eu
umask 077
printf '%s\n' "$POSTGRES_PASSWORD" > /tmp/password
initdb --pgdata="$PGDATA" --username="$POSTGRES_USER" --pwfile=/tmp/password --encoding=UTF8 --locale=C \
    --auth-local=trust --auth-host=scram-sha-256 --no-sync > /tmp/initdb.log
echo 'host all all all scram-sha-256' >> "$PGDATA/pg_hba.conf"
echo "CREATE DATABASE \"$POSTGRES_DB\"" | postgres --single -D "$PGDATA" postgres > /dev/null
exec postgres -D "$PGDATA" -c listen_addresses='*' -c unix_socket_directories=/tmp -c fsync=off \
    -c max_prepared_transactions=8
