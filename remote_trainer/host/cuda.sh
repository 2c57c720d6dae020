#!/bin/sh
# Asks the driver itself whether CUDA works here, for a context on each GPU: nvidia-smi also answers where no program can use them.
# Prints one line: "ok VERSION DEVICES", "fails WHAT CODE NAME" or "unknown WHY".
#
# Rules for editing: POSIX sh, and Python of any version from 3.6 on with its standard library alone. Nothing is written.

set -u
command -v python3 >/dev/null 2>&1 || { echo 'unknown no python3 there'; exit; }
limit='timeout 60' # a broken driver hangs
command -v timeout >/dev/null 2>&1 || limit=''
said=$($limit python3 -c '
import ctypes
import sys


def end(*words):
    print(*words)
    sys.stdout.flush()
    sys.exit(0)


def call(name, *arguments):
    code = getattr(cuda, name)(*arguments)
    if code:
        text = ctypes.c_char_p()
        cuda.cuGetErrorName(code, ctypes.byref(text))
        end("fails", name, code, (text.value or b"CUDA_ERROR").decode("ascii", "replace"))


try:
    cuda = ctypes.CDLL("libcuda.so.1")
except OSError:
    end("unknown no libcuda.so.1 there")
version, count = ctypes.c_int(), ctypes.c_int()
call("cuInit", 0)
call("cuDriverGetVersion", ctypes.byref(version))
call("cuDeviceGetCount", ctypes.byref(count))
for number in range(count.value):
    device, context = ctypes.c_int(), ctypes.c_void_p()
    call("cuDeviceGet", ctypes.byref(device), number)
    call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
end("ok", version.value, count.value)
' 2>/dev/null)
code=$?
case $code:$said in
    124:*) echo 'fails cuInit 124 hangs' ;;
    0:?*) printf '%s\n' "$said" ;;
    *) echo "unknown python3 ended with $code" ;;
esac
