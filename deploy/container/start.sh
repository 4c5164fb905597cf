#!/bin/sh
# Starts a member of a fleet in a container; used by deploy/compose and deploy/kubernetes, and tested without either.
#
#   ROLES    what it is to do, with commas between: frontend,worker-manager,placement,pollers,worker
#   CONFIG   its configuration, in which @ID@ and @ADDRESS@ stand for the next two     [/etc/emberbox/emberbox.toml]
#   ID       its name in the fleet, its own                                             [the host's name]
#   ADDRESS  where the other members reach it                                          [the host's address]
#   TOKEN    file with a line of `emberbox fleet token`; needed at the first start      [/run/emberbox/token]
#   DATA     its data directory, with its certificate                                  [/var/lib/emberbox]
set -eu
: "${ROLES:?say what this member is to do, e.g. ROLES=worker}"
CONFIG=${CONFIG:-/etc/emberbox/emberbox.toml}
TOKEN=${TOKEN:-/run/emberbox/token}
DATA=${DATA:-/var/lib/emberbox}
ID=${ID:-$(hostname)}
ADDRESS=${ADDRESS:-$(hostname -i)}

mkdir -p "$DATA"
if [ ! -e "$DATA/tls/member.pem" ]; then
    emberbox fleet join - --id "$ID" --roles "$ROLES" --host "$ADDRESS" --dir "$DATA/tls" < "$TOKEN"
fi
(umask 077; sed -e "s|@ID@|$ID|g" -e "s|@ADDRESS@|$ADDRESS|g" -e "s|@DATA@|$DATA|g" "$CONFIG" > "$DATA/emberbox.toml")

case ",$ROLES," in
*,worker,*)
    # Functions are not root's, and have to pass it.
    chmod 711 "$DATA"
    # Version 2 of cgroups hands its controllers to groups below only from one without processes, which a container's own is
    # not: this process, and with it the server, goes one down.
    if [ -e /sys/fs/cgroup/cgroup.type ]; then
        mkdir -p /sys/fs/cgroup/server
        echo $$ > /sys/fs/cgroup/server/cgroup.procs
    fi
    ;;
esac

exec emberbox serve --config "$DATA/emberbox.toml" --roles "$ROLES"
