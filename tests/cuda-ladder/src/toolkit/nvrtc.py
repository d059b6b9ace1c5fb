# Compiles a CUDA source with NVRTC and writes the PTX to stdout. Any message of the compiler is a failure.
# Arguments: library, source, architecture, include folders.
import ctypes
import sys

library, source, architecture, *folders = sys.argv[1:]
nvrtc = ctypes.CDLL(library)
program = ctypes.c_void_p()


def call(name, *arguments):
    code = getattr(nvrtc, name)(*arguments)
    if code != 0 and name != "nvrtcCompileProgram":
        sys.exit(f"{name}: error {code}")
    return code


def text(size, get):
    length = ctypes.c_size_t()
    call(size, program, ctypes.byref(length))
    room = ctypes.create_string_buffer(length.value)
    call(get, program, room)
    return room.value.decode()


with open(source, "rb") as file:
    body = file.read()
call("nvrtcCreateProgram", ctypes.byref(program), body, source.encode(), 0, None, None)
options = [f"--gpu-architecture={architecture}", "--std=c++17"] + [f"--include-path={folder}" for folder in folders]
listed = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
code = call("nvrtcCompileProgram", program, len(options), listed)
log = text("nvrtcGetProgramLogSize", "nvrtcGetProgramLog").strip()
if code != 0 or log:
    sys.exit(f"nvrtcCompileProgram: error {code}\n{log}")
sys.stdout.write(text("nvrtcGetPTXSize", "nvrtcGetPTX"))
