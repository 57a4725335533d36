"""The GPUs that Vulkan has on this machine, by name. Its loader is called directly: no package is needed."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass

#: ``VkPhysicalDeviceType`` by number, and the order in which WebGPU prefers them.
_KINDS = ("other", "integrated", "discrete", "virtual", "cpu")
_PREFERRED = ("discrete", "integrated", "virtual", "other", "cpu")
_LOADERS = {"linux": ("libvulkan.so.1",), "win32": ("vulkan-1.dll",), "darwin": ("libvulkan.1.dylib",)}
_VERSION_1_1 = 1 << 22 | 1 << 12


@dataclass(frozen=True)
class VulkanGpu:
    """A physical device: its name, and its kind: ``discrete``, ``integrated``, ``virtual``, ``cpu`` (a program) or ``other``."""

    name: str
    kind: str


class _Application(ctypes.Structure):
    """``VkApplicationInfo``."""

    _fields_ = (
        ("type", ctypes.c_uint32), ("next", ctypes.c_void_p), ("name", ctypes.c_char_p), ("version", ctypes.c_uint32),
        ("engine", ctypes.c_char_p), ("engine_version", ctypes.c_uint32), ("api_version", ctypes.c_uint32),
    )  # fmt: skip


class _Instance(ctypes.Structure):
    """``VkInstanceCreateInfo``."""

    _fields_ = (
        ("type", ctypes.c_uint32), ("next", ctypes.c_void_p), ("flags", ctypes.c_uint32),
        ("application", ctypes.POINTER(_Application)), ("layers", ctypes.c_uint32), ("layer_names", ctypes.c_void_p),
        ("extensions", ctypes.c_uint32), ("extension_names", ctypes.c_void_p),
    )  # fmt: skip


class _Properties(ctypes.Structure):
    """``VkPhysicalDeviceProperties``: its beginning, and room for the rest (824 bytes in all)."""

    _fields_ = (
        ("api_version", ctypes.c_uint32), ("driver_version", ctypes.c_uint32), ("vendor", ctypes.c_uint32),
        ("device", ctypes.c_uint32), ("kind", ctypes.c_uint32), ("name", ctypes.c_char * 256), ("rest", ctypes.c_byte * 1024),
    )  # fmt: skip


def vulkan_gpus() -> tuple[VulkanGpu, ...] | None:
    """The devices that Vulkan has, the one that WebGPU takes first; ``None`` where there is no loader.

    Drivers are loaded into the process for that: call it in one that may end.
    """
    vulkan = _loader()
    if vulkan is None:
        return None
    application = _Application(type=0, api_version=_VERSION_1_1)
    asked, instance = _Instance(type=1, application=ctypes.pointer(application)), ctypes.c_void_p()
    if vulkan.vkCreateInstance(ctypes.byref(asked), None, ctypes.byref(instance)) != 0:
        return ()  # a loader without a driver
    try:
        count = ctypes.c_uint32()
        vulkan.vkEnumeratePhysicalDevices(instance, ctypes.byref(count), None)
        devices = (ctypes.c_void_p * count.value)()
        vulkan.vkEnumeratePhysicalDevices(instance, ctypes.byref(count), devices)
        found = [_described(vulkan, device) for device in devices[: count.value] if device]
    finally:
        vulkan.vkDestroyInstance(instance, None)
    return tuple(sorted(found, key=lambda gpu: _PREFERRED.index(gpu.kind)))


def _loader() -> ctypes.CDLL | None:
    for name in _LOADERS.get(sys.platform, ()):
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


def _described(vulkan: ctypes.CDLL, device: int) -> VulkanGpu:
    properties = _Properties()
    vulkan.vkGetPhysicalDeviceProperties(ctypes.c_void_p(device), ctypes.byref(properties))
    kind = _KINDS[properties.kind] if properties.kind < len(_KINDS) else "other"
    return VulkanGpu(properties.name.decode("utf-8", "replace"), kind)
