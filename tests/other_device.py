"""A device beside the CPU, with values, for machines without one.

Its tensors hold those of the CPU. Mixing both is refused as on a GPU, with the same exceptions:
numbers, and indices. Backward passes and optimisers run there, unlike on the stand-in without
values of `test_devices`, and give what the CPU gives. PyTorch knows one such device in a process
from `register` on, so that tests take a process of their own (`apart`).
"""

from collections import Counter
from types import ModuleType

import torch
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "other"
ATEN = torch.ops.aten
MOVES = (ATEN._to_copy.default, ATEN.copy_.default, ATEN._local_scalar_dense.default)
WAITING = {ATEN._local_scalar_dense.default: "a number", ATEN.nonzero.default: "nonzero"}


class WrongDevice(Exception):
    """An operation on tensors of both devices."""


class OnOther(torch.Tensor):
    """A tensor of the other device."""

    @staticmethod
    def __new__(cls, inner):
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=torch.device(NAME, 0),
        )
        made.inner = inner
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


class Other(TorchDispatchMode):
    """While it is on, tensors are made on the other device and moved there and back.

    Attributes:
        waits: how often the program has asked the device for something that it must know.
    """

    def __init__(self):
        super().__init__()
        self.waits = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        there = any(isinstance(x, OnOther) for x in tree_leaves((args, kwargs)))
        if there and func in WAITING:
            self.waits[WAITING[func]] += 1
        return (_run if there or _is_other(kwargs) else _here)(func, args, kwargs)


def _here(func, args, kwargs):
    return func(*args, **kwargs)


def _is_other(kwargs):
    return kwargs.get("device") is not None and torch.device(kwargs["device"]).type == NAME


def _run(func, args, kwargs):
    """Do on the CPU what is asked of the other device."""
    leaves = tree_leaves((args, kwargs))
    there = [x for x in leaves if isinstance(x, OnOther)]
    _refuse_mixed(func, leaves, there)
    goes = _is_other(kwargs) if kwargs.get("device") is not None else bool(there)
    if func is ATEN.copy_.default:
        goes = isinstance(args[0], OnOther)
    inner_args, inner = tree_map(
        lambda x: x.inner if isinstance(x, OnOther) else x,
        (args, {**kwargs, "device": "cpu"} if _is_other(kwargs) else kwargs),
    )
    found = func(*inner_args, **inner)
    if not goes:
        return found
    known = {id(x.inner): x for x in there}

    def wrap(x):
        if not isinstance(x, torch.Tensor) or isinstance(x, OnOther):
            return x
        return known.get(id(x)) if id(x) in known else OnOther(x)

    wrapped = tree_map(wrap, found)
    return return_and_correct_aliasing(func, args, kwargs, wrapped) if there else wrapped


def _refuse_mixed(func, leaves, there):
    if not there or func in MOVES:
        return
    here = [x for x in leaves if isinstance(x, torch.Tensor) and not isinstance(x, OnOther)]
    for x in here:
        if x.dim() and not ("index" in str(func) and x.dtype in (torch.bool, torch.int64)):
            raise WrongDevice(f"{func} of the CPU's {tuple(x.shape)} and others of another device")


class _Module(ModuleType):
    """What PyTorch asks of a device."""

    def is_available(self):
        return True

    is_initialized = is_available

    def device_count(self):
        return 1

    def current_device(self):
        return 0

    def _is_in_bad_fork(self):
        return False

    def manual_seed_all(self, seed):
        pass

    def get_amp_supported_dtype(self):
        return [torch.bfloat16]


def register():
    """Let PyTorch know the device, and return it; once in a process, which must be apart."""
    _setup_privateuseone_for_python_backend(rename=NAME, backend_module=_Module(NAME))
    plain = {
        name: getattr(torch.Tensor, name)
        for name in ("tolist", "numpy", "__array__", "__getitem__")
    }
    make = torch.tensor

    def refused(self, *given, **options):
        raise TypeError("can't convert a tensor of another device to numpy")

    def indexed(self, index):
        several = isinstance(index, tuple)
        parts = [make(x) if isinstance(x, list) else x for x in (index if several else (index,))]
        return plain["__getitem__"](self, tuple(parts) if several else parts[0])

    # PyTorch does these without asking a device that Python implements.
    for name, other in {
        "tolist": lambda self: self.cpu().tolist(),
        "numpy": refused,
        "__array__": refused,
        "__getitem__": indexed,
    }.items():

        def chosen(self, *given, name=name, other=other, **options):
            method = other if isinstance(self, OnOther) else plain[name]
            return method(self, *given, **options)

        setattr(torch.Tensor, name, chosen)
    torch.tensor = lambda data, *, device=None, **options: make(data, **options).to(device or "cpu")
    torch.inference_mode = lambda *given: torch.no_grad()  # which wrapped tensors cannot be made in
    return torch.device(NAME, 0)


def move(module, device):
    """Move a module, as Lightning does."""
    module.to(device)
    for part in module.modules():
        if hasattr(part, "_device"):
            part._device = device
    return module
