"""The machine code of the loops: compiled once for a processor, kept on the disk, and loaded without numba.

numba takes seconds to compile them, and more than half a second to be imported, so a merge finds their machine code in
`__pycache__` beside this file or, where that cannot be written, in the user's cache (NUMBA_CACHE_DIR names another
folder), and has llvmlite load it. A file's name stands for the processor, the versions and the source, and the file
begins with a digest of what follows. A file that other users may have written is left alone: its code would be run.
Where no folder can be written, every process compiles.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import stat
import sys
import threading
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from common.files import write_atomic
from merge.loops.tables import BFLOAT16, EXACT, FLOAT16, Loop

OFF = "SLACKMERGE_NO_KERNELS"  # set to anything: merge without compiled loops
LINE = "merge: compiling loops for this processor (a quarter of a minute, once)"
COMMON = ("merge", "average", "count", "draw")
NAMES = {EXACT: (*COMMON, "count_below"), BFLOAT16: COMMON, FLOAT16: COMMON}
DIGEST = hashlib.sha256().digest_size
HERE = Path(__file__).parent
_lock = threading.Lock()
_ready: dict[int, dict[str, Loop] | None] = {}  # by kind
_engines: list[Any] = []  # which own the machine code


def compiled_loops(kinds: Iterable[int], tell: bool, may_compile: bool = True) -> dict[int, dict[str, Loop]] | None:
    """The loops for arithmetic of some kinds, by kind and name; None where they cannot be had.

    tell: print a line on stderr where they have to be compiled first. may_compile: else they are only loaded.
    """
    if os.environ.get(OFF):
        return None
    found = {}
    with _lock:
        for kind in sorted(set(kinds)):
            if kind not in _ready:
                loops = None
                with suppress(Exception):  # whatever fails: merges work without loops
                    loops = _loops(kind, tell, may_compile)
                if loops is not None or may_compile:
                    _ready[kind] = loops
            if (ready := _ready.get(kind)) is None:
                return None
            found[kind] = ready
    return found


def _loops(kind: int, tell: bool, may_compile: bool) -> dict[str, Loop] | None:
    name = f"loops-{kind}-{_key()}.o"
    code = _kept(name) or (_kept_anew(name, kind, tell) if may_compile else None)
    return _loaded(code, NAMES[kind]) if code is not None else None


def _kept(name: str) -> bytes | None:
    """Machine code from the disk, where it is there."""
    return next((code for folder in _folders() if (code := _read(folder / name))), None)


def _read(path: Path) -> bytes | None:
    """Machine code from a file, where it is whole, and nobody else can have written it."""
    with suppress(OSError), path.open("rb") as file:
        status = os.fstat(file.fileno())
        known = status.st_uid in (0, os.getuid(), HERE.stat().st_uid)  # whose programs run here anyway
        if known and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            kept = file.read()
            if hashlib.sha256(kept[DIGEST:]).digest() == kept[:DIGEST]:
                return kept[DIGEST:]
    return None


def _write(path: Path, code: bytes) -> None:
    """Write what `_read` reads, whatever the umask."""
    path.write_bytes(hashlib.sha256(code).digest() + code)
    path.chmod(0o644)


def _kept_anew(name: str, kind: int, tell: bool) -> bytes:
    """Machine code that is compiled now, and kept where a folder can be written."""
    if tell and sys.stderr is not None:
        print(LINE, file=sys.stderr, flush=True)
    code = _compiled(kind)
    for folder in _folders():
        with suppress(Exception):  # it cannot be written, or its disk is full
            folder.mkdir(parents=True, exist_ok=True)
            write_atomic(folder / name, lambda aside: _write(aside, code))
            if _read(folder / name):  # else its disk has no modes, and others may write there
                break
    return code


def _folders() -> list[Path]:
    """Where machine code may be kept, the best place first."""
    if chosen := os.environ.get("NUMBA_CACHE_DIR"):
        return [Path(chosen)]
    folders = [HERE / "__pycache__"]
    with suppress(RuntimeError):  # a user without a home, as in containers
        folders.append(Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "slackmerge")
    return folders


@cache
def _key() -> str:
    """What machine code depends on."""
    import llvmlite.binding as llvm  # type: ignore[import-untyped]

    parts = [llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten(), version("numba"), version("llvmlite")]
    parts += [path.read_text(encoding="utf-8") for path in sorted(HERE.glob("*.py"))]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _compiled(kind: int) -> bytes:
    """An object file with the loops of a kind under their names."""
    import llvmlite.binding as llvm  # type: ignore[import-untyped]
    import numba

    from merge.loops.entries import SIGNATURE, entries

    whole = None
    for name, loop in entries(kind).items():
        found = numba.cfunc(SIGNATURE, error_model="numpy")(loop)
        part = llvm.parse_assembly(_without_failures(found.inspect_llvm()))
        part.get_function(found.native_name).name = name
        whole = part if whole is None else whole
        if part is not whole:
            whole.link_in(part)
    _check_calls(whole)
    return _machine(llvm).emit_object(whole)


def _check_calls(module: Any) -> None:
    """Raise ValueError where machine code would need more than the C library's memory functions."""
    needed = (each.name for each in module.functions if each.is_declaration)
    if unknown := [name for name in needed if not name.startswith(("llvm.", "mem"))]:
        raise ValueError(f"the loops call {', '.join(unknown)}")


def _without_failures(code: str) -> str:
    """LLVM's text of a function without what numba's code calls where one fails: then it needs the C library only.

    Nothing in the loops raises, and they hold no object of numba's, so it is never reached. Other calls stay.
    """
    failing = r"^declare (.* @(?:Py|numba_|NRT_)\w+\(.*\)).*$"
    code = re.sub(failing, r"define internal \1 { unreachable }", code, flags=re.MULTILINE)
    return re.sub(r"^(@Py\w+ = )external( global ptr)", r"\1internal\2 null", code, flags=re.MULTILINE)


def _machine(llvm: Any) -> Any:
    """This processor, with all its instructions."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    target = llvm.Target.from_default_triple()
    features = llvm.get_host_cpu_features().flatten()
    return target.create_target_machine(cpu=llvm.get_host_cpu_name(), features=features, opt=3, jit=True)


def _loaded(code: bytes, names: Iterable[str]) -> dict[str, Loop]:
    """Functions of an object file. They leave the interpreter to other threads."""
    import llvmlite.binding as llvm  # type: ignore[import-untyped]

    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _machine(llvm))
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    _engines.append(engine)
    kind = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p)
    return {name: kind(engine.get_function_address(name)) for name in names}
