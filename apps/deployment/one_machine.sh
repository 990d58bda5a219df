#!/usr/bin/env bash
# From nothing to a trained model on this machine: a certificate and keys, a SuperLink,
# SuperNodes that prove who they are, and one run over the stream.
#
#   apps/deployment/one_machine.sh FOLDER [RUN-CONFIG]
#
# Certificate, keys, logs and results go to FOLDER, a new one. RUN-CONFIG is for
# `flwr run --run-config`. DEVICES=5 and PORT=9443 in the environment change what they name;
# SuperNodes take the ports after the SuperLink's. What was started ends with the script.
set -euo pipefail

folder=$(realpath -m "${1:?name a new folder for certificate, keys, logs and results}")
run_config=${2:-'num-server-rounds=2 transport="stream"'}
devices=${DEVICES:-2}
port=${PORT:-9443}
app=$(realpath "$(dirname "$0")/../..")
export FLWR_HOME=$folder

started=()
start() { # NAME COMMAND...: run in the background, log to NAME.log
  "${@:2}" >"$1.log" 2>&1 &
  started+=($!)
}
stop() {
  ((${#started[@]} == 0)) || kill "${started[@]}" 2>/dev/null || true
  wait
}
trap stop EXIT
trap 'exit 1' INT TERM

mkdir "$folder"
cd "$folder"

openssl req -x509 -newkey rsa:2048 -nodes -days 365 -keyout server.key -out server.crt \
  -subj "/CN=localhost" -addext "subjectAltName=DNS:localhost,IP:127.0.0.1" 2>openssl.log
cat >config.toml <<END
[superlink]
default = "deployment"

[superlink.deployment]
address = "127.0.0.1:$port"
root-certificates = "$folder/server.crt"
END

start superlink flower-superlink --host 127.0.0.1 --port "$port" --enable-supernode-auth \
  --ssl-certfile server.crt --ssl-keyfile server.key --ssl-ca-certfile server.crt \
  --disable-runtime-dependency-installation
until (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do
  kill -0 "${started[0]}" || { cat superlink.log; exit 1; }
  sleep 0.5
done

for ((i = 0; i < devices; i++)); do
  ssh-keygen -q -t ecdsa -b 384 -N "" -f "device-$i"
  flwr supernode register "device-$i.pub" deployment
  start "device-$i" flower-supernode --superlink "127.0.0.1:$port" \
    --root-certificates server.crt --auth-supernode-private-key "device-$i" \
    --port $((port + 1 + i)) --node-config "partition-id=$i num-partitions=$devices"
done

flwr run "$app" deployment --stream --run-config "min-available-nodes=$devices" \
  --run-config "out=\"$folder\"" --run-config "$run_config"
# `flwr run` itself ends with 0 whatever becomes of the run.
test -f summary.json || { echo "the run failed; see $folder/*.log"; exit 1; }
