#!/bin/sh
# Start the server of the reservations with the users of reservations.acl.
#
# Passwords come as EDGE_REDIS_PASSWORD and BRIDGE_REDIS_PASSWORD; the server gets their hashes alone.
# ADMIN_REDIS_PASSWORD may come too, where servers make a cluster or replicate: a user `admin` that may
# everything, as which they sync with one another. Further options of the server may follow.
set -eu

here=$(dirname "$0")
server=${REDIS_SERVER:-redis-server}
: "${EDGE_REDIS_PASSWORD:?is needed}" "${BRIDGE_REDIS_PASSWORD:?is needed}"

hash_of() { printf %s "$1" | sha256sum | cut -d ' ' -f 1; }

acl=$(mktemp)
sed -e "s/@EDGE_SHA256@/$(hash_of "$EDGE_REDIS_PASSWORD")/" \
    -e "s/@BRIDGE_SHA256@/$(hash_of "$BRIDGE_REDIS_PASSWORD")/" "$here/reservations.acl" >"$acl"
if [ -n "${ADMIN_REDIS_PASSWORD:-}" ]; then
    echo "user admin on #$(hash_of "$ADMIN_REDIS_PASSWORD") ~* &* +@all" >>"$acl"
    # not among the options, which everybody on the machine may read
    conf=$(mktemp)
    printf 'masteruser admin\nmasterauth "%s"\n' "$ADMIN_REDIS_PASSWORD" >"$conf"
    set -- "$conf" "$@"
fi
unset EDGE_REDIS_PASSWORD BRIDGE_REDIS_PASSWORD ADMIN_REDIS_PASSWORD

# What is lost here is rebuilt from the ledger: nothing is written to disk. A full memory must refuse,
# never evict: a key less is a lease less.
exec "$server" "$@" --aclfile "$acl" --save "" --appendonly no --maxmemory-policy noeviction
