"""GPUs for tests on machines without one: tensors that lie on the CPU, report `cuda:0`, and refuse what CUDA refuses.

Mixing them with tensors of a dimension or more of the CPU or of another GPU raises RuntimeError, `numpy()` raises
TypeError, as on a real GPU. Arithmetic is the CPU's, so numbers are compared exactly. No kernel of CUDA runs: it is no
proof that a GPU works.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Self
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

CUDA, CPU = torch.device("cuda:0"), torch.device("cpu")
aten = torch.ops.aten
COPIES = {aten.copy_.default, aten.copy.default}
INDEXING = {aten.index.Tensor, aten._unsafe_index.Tensor, aten.index_put_.default, aten.index_put.default}
INDEXING |= {aten._index_put_impl_.default}
PLACES = ("device", "non_blocking", "pin_memory")


class Simulated(torch.Tensor):
    """A tensor that reports a GPU, `place`. inner: the same on the CPU."""

    inner: torch.Tensor
    place: torch.device

    @staticmethod
    def __new__(cls, inner: torch.Tensor, place: torch.device = CUDA) -> Self:
        made: Self = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=CPU,
            requires_grad=False,
        )
        return made

    def __init__(self, inner: torch.Tensor, place: torch.device = CUDA) -> None:
        self.inner, self.place = inner, place

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"Simulated({self.inner!r})"

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self.place

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True

    def __tensor_flatten__(self) -> tuple[list[str], torch.device]:
        return ["inner"], self.place

    @staticmethod
    def __tensor_unflatten__(parts: dict[str, torch.Tensor], place: torch.device, *_: Any) -> Simulated:
        return Simulated(parts["inner"], place)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.Tensor.numpy:
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")
        if func is torch.Tensor.cpu:
            return args[0].inner.clone()
        if func is torch.Tensor.to and isinstance(args[0], Simulated):
            return _moved(args[0], args[1:], kwargs)
        if func is torch.Tensor.data_ptr:
            return args[0].inner.data_ptr()
        if func in (torch.Tensor.tolist, torch.Tensor.item, torch.Tensor.__bool__):
            return getattr(args[0].inner, func.__name__)()
        if func in (torch.Tensor.__float__, torch.Tensor.__int__):
            return getattr(args[0].inner, func.__name__)()
        return super().__torch_function__(func, types, args, kwargs)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _moved(tensor: Simulated, places: Any, named: dict[str, Any]) -> torch.Tensor:
    """`Tensor.to` of a simulated tensor, in all its forms."""
    device, dtype = named.get("device"), named.get("dtype")
    for place in places:
        if isinstance(place, str | torch.device | int) and not isinstance(place, bool):
            device = place
        elif isinstance(place, torch.dtype):
            dtype = place
        elif isinstance(place, torch.Tensor):
            device, dtype = place.device, place.dtype
    dtype = dtype or tensor.inner.dtype
    if device is not None and torch.device(device).type == "cpu":
        return tensor.inner.to(dtype, copy=True)
    place = tensor.place if device is None else _gpu(device)
    if dtype == tensor.inner.dtype and place == tensor.place and not named.get("copy", False):
        return tensor
    return Simulated(tensor.inner.to(dtype, copy=True), place)


def _gpu(device: str | torch.device | int) -> torch.device:
    """The GPU of a name; plain `cuda` is the first."""
    named = torch.device(device)
    return CUDA if named.index is None else named


def _inner(value: Any) -> Any:
    return value.inner if isinstance(value, Simulated) else value


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """An operation of ATen with simulated tensors, or that makes one."""
    device = None if kwargs.get("device") is None else torch.device(kwargs["device"])
    if func is aten._to_copy.default:
        copied = func(_inner(args[0]), **{key: value for key, value in kwargs.items() if key not in PLACES})
        to = device or args[0].device
        return Simulated(copied, _gpu(to)) if to.type == "cuda" else copied
    if func in COPIES:  # between devices, as on a GPU
        func(*map(_inner, args), **kwargs)
        return args[0]
    tensors = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, torch.Tensor)]
    there = [value for value in tensors if isinstance(value, Simulated)]
    if there:
        _refuse_two_gpus(func, there)
        _refuse_mixing(func, args, [value for value in tensors if not isinstance(value, Simulated)])
    named = {key: CPU if key == "device" and value is not None else value for key, value in kwargs.items()}
    if "pin_memory" in named:
        named["pin_memory"] = False
    result = func(*tree_map(_inner, args), **tree_map(_inner, named))
    on_gpu = device.type == "cuda" if device is not None else bool(there)
    if not on_gpu or func is aten._local_scalar_dense.default:
        return result
    place = _gpu(device) if device is not None else there[0].place
    known = {id(value.inner): value for value in there}  # what an operation in place returns is its input

    def outer(value: Any) -> Any:
        return known[id(value)] if id(value) in known else Simulated(value, place)

    return tree_map(lambda value: outer(value) if isinstance(value, torch.Tensor) else value, result)


def _refuse_two_gpus(func: Any, there: list[Simulated]) -> None:
    """Raise what CUDA raises for tensors of two GPUs; also for single numbers and indices, which it copies for none."""
    if len(places := {str(value.place) for value in there}) > 1:
        raise RuntimeError(f"{func}: expected all tensors to be on the same device, got {' and '.join(sorted(places))}")


def _refuse_mixing(func: Any, args: Any, here: list[torch.Tensor]) -> None:
    """Raise what CUDA raises for tensors of two devices. Indices may lie on the CPU, and so may single numbers."""
    if func in INDEXING:
        if not isinstance(args[0], Simulated):
            raise RuntimeError(f"{func}: indices should be on the same device as the indexed tensor (cpu)")
        here = [value for value in args[2:] if isinstance(value, torch.Tensor) and not isinstance(value, Simulated)]
    if wrong := [tuple(value.shape) for value in here if value.dim() > 0]:
        raise RuntimeError(f"{func}: expected all tensors to be on the same device, got cuda:0 and cpu {wrong}")


class _Mode(TorchDispatchMode):
    """Makes simulated tensors where a new one is asked for on cuda."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        device = kwargs.get("device")
        wanted = device is not None and torch.device(device).type == "cuda"
        if wanted or any(isinstance(value, Simulated) for value in tree_flatten((args, kwargs))[0]):
            return _run(func, args, kwargs)
        return func(*args, **kwargs)


@contextmanager
def simulated_cuda(count: int = 1) -> Iterator[None]:
    """Let this process believe that it has `count` GPUs, which are simulated.

    Name it cuda:0 where a tensor is moved: torch itself looks up the number of a plain `cuda`.
    """
    make = torch.tensor

    def tensor(data: Any, **named: Any) -> torch.Tensor:
        device = named.pop("device", None)
        made = make(data, **named)
        on_gpu = device is not None and torch.device(device).type == "cuda"
        return Simulated(made, _gpu(device)) if on_gpu else made

    facts: dict[str, Any] = {
        "is_available": lambda: True,
        "_lazy_init": lambda: None,
        "current_device": lambda: 0,
        "device_count": lambda: count,
        "empty_cache": lambda: None,
    }
    with ExitStack() as stack:
        for name, fact in facts.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, fact))
        stack.enter_context(mock.patch.object(torch, "tensor", tensor))
        stack.enter_context(_Mode())
        yield
