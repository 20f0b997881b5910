#!/bin/sh
# Installs kronfluence, bergson and dattri, with what they need and nothing else, beside the sources in .venv/peers.
# usage: sh scripts/peers.sh [DIRECTORY]      PYTHON=python3.11 chooses the interpreter; docs/peers.md says why it is apart.
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)
venv=${1:-$here/.venv/peers}
python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
mkdir -p "$(dirname "$venv")"
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
pip() { "$venv/bin/python" -m pip --disable-pip-version-check "$@"; }
pip install -q -r "$here/benchmarks/lds/peers/requirements.txt"
# Without their dependencies: those are in the list above, less torchvision and torchaudio. bergson and kronfluence declare
# them and import them nowhere; where they do not fit the installed torch, transformers fails to import for their sake.
pip install -q --no-deps bergson==2.5.1 dattri==0.3.0 kronfluence==1.0.1
"$venv/bin/python" -c 'import bergson, dattri, kronfluence; print("bergson", bergson.__version__, "and the others are there")'
echo "now: python -m benchmarks.lds.peers    (elsewhere: OPENLEDGER_PEERS_PYTHON=$venv/bin/python)"
