#!/usr/bin/env bash
# Runs a main on every worker of a Cloud TPU VM slice.
#
#   launch/tpu_pod.sh [--dry-run] --name=NAME --zone=ZONE --workdir=DIR \
#     [--project=P] [--main=pipeline] [--source=DIR] [--port=8476] -- FLAGS...
#
# Copies the checkout to all workers, installs it with the tpu extra, and
# starts `python -m launch.MAIN FLAGS...` on all of them; worker 0 coordinates.
# DIR must be seen by all workers: a bucket mounted with gcsfuse, or Filestore.
# Started again after a preemption, the same command goes on where it stopped.
set -euo pipefail

usage() {
  sed -n '2,11s/^# \{0,1\}//p' "$0" >&2
  exit 2
}

dry_run=0 name='' zone='' project='' workdir='' main=pipeline port=8476
source_dir=$(cd "$(dirname "$0")/.." && pwd)
while (($#)); do
  case $1 in
    --dry-run) dry_run=1 ;;
    --name=*) name=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --project=*) project=${1#*=} ;;
    --workdir=*) workdir=${1#*=} ;;
    --main=*) main=${1#*=} ;;
    --source=*) source_dir=${1#*=} ;;
    --port=*) port=${1#*=} ;;
    --) shift && break ;;
    *) echo "error: unknown argument '$1'" >&2 && usage ;;
  esac
  shift
done
for needed in name zone workdir; do
  if [[ -z ${!needed} ]]; then
    echo "error: --$needed is missing" >&2
    usage
  fi
done

run() {
  if ((dry_run)); then
    printf '%q ' "$@" && printf '\n'
  else
    "$@"
  fi
}

where=(--zone="$zone" --worker=all)
if [[ -n $project ]]; then
  where+=(--project="$project")
fi
flags=''
if (($#)); then
  flags=$(printf ' %q' "$@")
fi

# The metadata server tells a worker its number and all workers' addresses
# (third field of each comma-separated entry).
remote="
set -euo pipefail
attribute() {
  curl -sSf -H 'Metadata-Flavor: Google' \\
    \"http://metadata.google.internal/computeMetadata/v1/instance/attributes/\$1\"
}
endpoints=\$(attribute worker-network-endpoints)
GR_JAX_PROCESS_ID=\$(attribute agent-worker-number)
GR_JAX_NUM_PROCESSES=\$(tr ',' '\\n' <<<\"\$endpoints\" | wc -l)
GR_JAX_COORDINATOR=\$(cut -d, -f1 <<<\"\$endpoints\" | cut -d: -f3):$port
export GR_JAX_PROCESS_ID GR_JAX_NUM_PROCESSES GR_JAX_COORDINATOR
cd gr_jax
python3 -m venv .venv
.venv/bin/pip install -q -e '.[tpu]'
exec .venv/bin/python -m launch.$main --workdir=$(printf %q "$workdir")$flags
"

run gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" \
  --command='mkdir -p gr_jax && cd gr_jax && rm -rf gr_jax launch configs'
archive=$(mktemp --suffix=.tar.gz)
trap 'rm -f "$archive"' EXIT
run git -C "$source_dir" archive --format=tar.gz --output="$archive" HEAD
run gcloud compute tpus tpu-vm scp "$archive" "$name:gr_jax/source.tar.gz" \
  "${where[@]}"
run gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" \
  --command='tar -xzf gr_jax/source.tar.gz -C gr_jax'
run gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --command="$remote"
