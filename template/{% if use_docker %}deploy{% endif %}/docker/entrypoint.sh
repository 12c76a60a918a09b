#!/bin/sh
# Owned by the template: `copier update` changes this file.
# Check the volume, then replace this shell with the command, so that the command receives signals.
if [ ! -w /data ]; then
    echo "/data can't be written to by user $(id -u): on the host, chown -R $(id -u):$(id -g) what is mounted there." >&2
    exit 1
fi
exec "$@"
