#!/bin/sh
# Owned by the template: `copier update` changes this file.
# Check what can only be wrong from outside, then become the command, so that it gets the signals.
if [ ! -w /data ]; then
    echo "/data can't be written to by user $(id -u): on the host, chown -R $(id -u):$(id -g) what is mounted there." >&2
    exit 1
fi
exec "$@"
