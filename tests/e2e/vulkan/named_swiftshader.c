/*
 * A Vulkan driver in front of another one, which names its device as SwiftShader's: of the devices that compute on the CPU Chromium
 * gives pages no other. Mesa's llvmpipe behind it computes in float16, SwiftShader does not.
 *
 * cc -shared -fPIC -o libnamed.so named_swiftshader.c -ldl      EDGEPEFT_NAMED_ICD=/path/of/libvulkan_lvp.so
 */
#include <dlfcn.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef void (*Function)(void);
typedef Function (*Lookup)(void *instance, const char *name);
typedef void (*Properties)(void *device, void *properties);

/* Where VkPhysicalDeviceProperties has vendorID and deviceID; VkPhysicalDeviceProperties2 has 16 bytes before them. */
enum { IDS = 8, IDS2 = 24 };
static const uint32_t swiftshader[2] = {0x1AE0, 0xC0DE};

static void *library;
static Properties real, real2;

static Function found(const char *name) {
  if (library == NULL) library = dlopen(getenv("EDGEPEFT_NAMED_ICD"), RTLD_NOW | RTLD_LOCAL);
  return library == NULL ? NULL : (Function)dlsym(library, name);
}

static void properties(void *device, void *out) {
  real(device, out);
  memcpy((char *)out + IDS, swiftshader, sizeof swiftshader);
}

static void properties2(void *device, void *out) {
  real2(device, out);
  memcpy((char *)out + IDS2, swiftshader, sizeof swiftshader);
}

static Function wrapped(const char *name, Function function) {
  if (function == NULL) return NULL;
  if (strcmp(name, "vkGetPhysicalDeviceProperties") == 0) return real = (Properties)function, (Function)properties;
  if (strcmp(name, "vkGetPhysicalDeviceProperties2") == 0 || strcmp(name, "vkGetPhysicalDeviceProperties2KHR") == 0)
    return real2 = (Properties)function, (Function)properties2;
  return function;
}

Function vk_icdGetInstanceProcAddr(void *instance, const char *name) {
  Lookup lookup = (Lookup)found("vk_icdGetInstanceProcAddr");
  return lookup == NULL ? NULL : wrapped(name, lookup(instance, name));
}

Function vk_icdGetPhysicalDeviceProcAddr(void *instance, const char *name) {
  Lookup lookup = (Lookup)found("vk_icdGetPhysicalDeviceProcAddr");
  return lookup == NULL ? NULL : wrapped(name, lookup(instance, name));
}

int32_t vk_icdNegotiateLoaderICDInterfaceVersion(uint32_t *version) {
  int32_t (*negotiate)(uint32_t *) = (int32_t(*)(uint32_t *))found("vk_icdNegotiateLoaderICDInterfaceVersion");
  return negotiate == NULL ? -9 : negotiate(version);
}
