#!/bin/sh
# Find a Python that has what the trainers need, or make an environment that has; write its path to python.path.
# The recipes' first step: PYTHON or RT_PYTHON name one, RT_WORK and RT_TOOL are the host's folders, GPUS says how many are wanted.
set -eu

python=${PYTHON:-${RT_PYTHON:-python3}}
# The 8-bit optimiser and nf4 need a package more. On a GPU auto may choose nf4, or a checkpoint that goes on or is evaluated here may
# have begun with it.
more=
case "${OPTIMIZER:-}/${QUANTIZE:-}" in
  adamw8bit/* | */nf4) more=bitsandbytes ;;
  */auto | */) if command -v nvidia-smi >/dev/null; then more=bitsandbytes; fi ;;
esac

has_everything() {
  # Without the collector, which would look through all of it for garbage again and again, that takes two thirds of the time.
  "$1" -c "import gc; gc.disable(); import accelerate, diffusers, numpy, peft, PIL, safetensors, tensorboardX, torch, transformers${more:+, $more}; gc.freeze()"
}
echo "looking for the training libraries in $python"
if has_everything "$python" 2>/dev/null; then
  echo "using $python, which has all that is needed"
else
  # What this Python has is seen from inside, so that its torch, made for the machine's driver, stays the one that is used.
  # (--system-site-packages would not do: made from an environment, it shows what lies below that one.)
  echo "making an environment from $python"
  "$python" -m venv "$RT_WORK/venv"
  seen=$("$python" -c 'import site; print(*site.getsitepackages(), sep="\n")')
  python=$RT_WORK/venv/bin/python
  printf '%s\n' "$seen" >"$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/host.pth"
  # A torch that is there is pinned to what it is; else the newest that this trainer was tested with is taken.
  if "$python" -c 'import torch' 2>/dev/null; then
    "$python" -c 'import importlib.metadata as m; print("torch==" + m.version("torch"))' >constraints.txt
  else
    echo "torch==2.13.0" >constraints.txt
  fi
  "$python" -m pip install --quiet --constraint constraints.txt torch --requirement "$RT_TOOL/lora/requirements.txt" \
    ${more:+"$more==0.50.2"}
  has_everything "$python"
fi
# Without this a training would go on, on the processor of a machine whose GPU is paid for.
if [ "${GPUS:-0}" -gt 0 ] && ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  echo "error: torch in $python cannot use this machine's GPU; its driver may be older than that torch needs (nvidia-smi shows it)" >&2
  exit 2
fi
printf '%s\n' "$python" >python.path
