/* libamdhip64.so: the HIP runtime's names and structures over the core, with ROCm's own ways.

   Rules after the HIP API reference, version 7, and where it is silent after the behaviour that
   users have reported of ROCm:
     - an unmap of what is not mapped follows a null pointer (always);
     - a map that fails reports success (`silent_map`);
     - memory comes back only with the address range it was mapped in (`keeps_memory`), in some
       versions;
     - memory is only ever the device's: there are no host locations.
   The declarations are our own; that they are right is shown by the real binding, which runs on
   them. Kernels and modules are not there. */
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "core.h"

enum { PINNED = 1, DEVICE = 1, POSIX_DESCRIPTOR = 1 };

typedef struct {
    int type, id;
} hipMemLocation;

typedef struct {
    int type, requested_handle_types;
    hipMemLocation location;
    void *win32_metadata;
    unsigned char compression, gpu_direct_rdma;
    unsigned short usage;
} hipMemAllocationProp;

typedef struct {
    hipMemLocation location;
    int flags;
} hipMemAccessDesc;

/* hipDeviceProp_tR0600 has 1472 bytes; only what somebody reads has a name here. */
typedef struct {
    char name[256], uuid[16], luid[8];
    unsigned luid_mask;
    size_t total_global_memory;
    char unused_1[308 - 296];
    int warp_size;
    char unused_2[388 - 312];
    int multiprocessors;
    char unused_3[1160 - 392];
    char architecture[256];
    char unused_4[1472 - 1416];
} hipDeviceProp;
_Static_assert(sizeof(hipDeviceProp) == 1472, "the size of hipDeviceProp_tR0600");

static __thread int current;    /* this thread's device */
static __thread int last_error; /* sticky until it is asked for */

#define ENTER                                                  \
    do {                                                       \
        int status_ = emu_enter(__func__);                     \
        if (status_) LEAVE(status_, " ");                      \
    } while (0)
#define LEAVE(status, ...)                                       \
    do {                                                         \
        int end_ = emu_leave(__func__, (status), __VA_ARGS__);   \
        if (end_ && end_ != NOT_READY) last_error = end_;        \
        return end_;                                             \
    } while (0)

static int known(int device) { return device >= 0 && device < (int)settings.devices; }

/* --- the runtime and its devices ----------------------------------------------------------- */

int hipInit(unsigned flags) {
    ENTER;
    LEAVE(flags ? INVALID_VALUE : settings.devices ? OK : NO_DEVICE, "flags=%u", flags);
}

int hipRuntimeGetVersion(int *version) {
    *version = settings.version ? (int)settings.version : 70200000;
    return OK;
}

int hipDriverGetVersion(int *version) { return hipRuntimeGetVersion(version); }

int hipGetDeviceCount(int *count) {
    ENTER;
    *count = (int)settings.devices;
    LEAVE(*count ? OK : NO_DEVICE, " ");
}

int hipSetDevice(int device) {
    ENTER;
    if (!known(device)) LEAVE(INVALID_DEVICE, "device=%d", device);
    current = device;
    LEAVE(OK, "device=%d", device);
}

int hipGetDevice(int *device) {
    ENTER;
    *device = current;
    LEAVE(OK, " ");
}

int hipDeviceGetAttribute(int *value, int attribute, int device) {
    ENTER;
    if (!known(device)) LEAVE(INVALID_DEVICE, "device=%d", device);
    if (attribute != 89) LEAVE(INVALID_VALUE, "attribute=%d", attribute);
    *value = (int)settings.virtual_memory; /* hipDeviceAttributeVirtualMemoryManagementSupported */
    LEAVE(OK, "attribute=%d, device=%d", attribute, device);
}

int hipGetDevicePropertiesR0600(hipDeviceProp *properties, int device) {
    ENTER;
    if (!known(device)) LEAVE(INVALID_DEVICE, "device=%d", device);
    *properties = (hipDeviceProp){.total_global_memory = settings.memory,
                                  .warp_size = 64,
                                  .multiprocessors = 304,
                                  .name = "Emulated GPU in host memory",
                                  .architecture = "gfx942:sramecc+:xnack-"};
    LEAVE(OK, "device=%d", device);
}

int hipDeviceSynchronize(void) {
    ENTER;
    LEAVE(device_synchronize(), " ");
}

/* --- virtual memory ------------------------------------------------------------------------ */

int hipMemGetInfo(size_t *free_bytes, size_t *total_bytes) {
    ENTER;
    LEAVE(memory_info(current, free_bytes, total_bytes), " ");
}

static int check_properties(const hipMemAllocationProp *properties) {
    if (!properties || properties->type != PINNED) return INVALID_VALUE;
    if (properties->requested_handle_types & ~POSIX_DESCRIPTOR) return NOT_SUPPORTED;
    if (properties->location.type != DEVICE) return INVALID_VALUE;
    return known(properties->location.id) ? OK : INVALID_VALUE;
}

int hipMemGetAllocationGranularity(
    size_t *granularity, const hipMemAllocationProp *properties, int option) {
    ENTER;
    int status = option == 0 || option == 1 ? check_properties(properties) : INVALID_VALUE;
    if (!status) *granularity = settings.granularity;
    LEAVE(status, "option=%d", option);
}

int hipMemAddressReserve(
    void **base, size_t size, size_t alignment, void *hint, unsigned long long flags) {
    ENTER;
    uintptr_t start = 0;
    int status = flags ? INVALID_VALUE : memory_reserve(&start, size, alignment);
    (void)hint; /* only a wish */
    *base = (void *)start;
    LEAVE(status, "size=%zu, alignment=%zu", size, alignment);
}

int hipMemAddressFree(void *base, size_t size) {
    ENTER;
    LEAVE(memory_free_span((uintptr_t)base, size), "base=%p, size=%zu", base, size);
}

int hipMemCreate(
    void **handle, size_t size, const hipMemAllocationProp *properties, unsigned long long flags) {
    ENTER;
    uint64_t made = 0;
    int status = flags ? INVALID_VALUE : check_properties(properties);
    if (!status) status = memory_create(&made, size, properties->location.id);
    *handle = (void *)made;
    LEAVE(status, "size=%zu", size);
}

int hipMemRetainAllocationHandle(void **handle, void *address) {
    ENTER;
    uint64_t found = 0;
    int status = memory_retain(&found, (uintptr_t)address);
    *handle = (void *)found;
    LEAVE(status, "address=%p", address);
}

int hipMemRelease(void *handle) {
    ENTER;
    LEAVE(memory_release((uint64_t)handle), "handle=%p", handle);
}

int hipMemMap(void *base, size_t size, size_t offset, void *handle, unsigned long long flags) {
    int status = emu_enter(__func__);
    if (!status)
        status = flags || offset
                     ? INVALID_VALUE
                     : memory_map((uintptr_t)base, size, offset, (uint64_t)handle);
    if (status == NOT_SUPPORTED) status = INVALID_VALUE; /* as documented */
    if (settings.silent_map) status = OK;
    LEAVE(status, "base=%p, size=%zu, handle=%p", base, size, handle);
}

int hipMemUnmap(void *base, size_t size) {
    ENTER;
    int status = memory_unmap((uintptr_t)base, size);
    if (status == INVALID_VALUE) raise(SIGSEGV);
    LEAVE(status, "base=%p, size=%zu", base, size);
}

int hipMemSetAccess(
    void *base, size_t size, const hipMemAccessDesc *descriptions, size_t count) {
    ENTER;
    int status = descriptions && count ? OK : INVALID_VALUE;
    for (size_t i = 0; i < count && !status; i++)
        status = descriptions[i].location.type != DEVICE
                     ? INVALID_VALUE
                     : memory_set_access((uintptr_t)base, size, descriptions[i].location.id,
                                         descriptions[i].flags);
    LEAVE(status, "base=%p, size=%zu, count=%zu", base, size, count);
}

int hipMemGetAccess(unsigned long long *flags, const hipMemLocation *location, void *address) {
    ENTER;
    int access = NO_ACCESS;
    int status = location->type != DEVICE
                     ? INVALID_VALUE
                     : memory_get_access((uintptr_t)address, location->id, &access);
    *flags = access;
    LEAVE(status, "address=%p", address);
}

/* --- host memory and copies ---------------------------------------------------------------- */

int hipHostMalloc(void **pointer, size_t size, unsigned flags) {
    ENTER;
    LEAVE(memory_pin(pointer, size), "size=%zu, flags=%u", size, flags);
}

int hipHostFree(void *pointer) {
    ENTER;
    LEAVE(memory_unpin(pointer), "pointer=%p", pointer);
}

int hipMemcpyAsync(void *target, const void *source, size_t size, int kind, struct stream *stream) {
    ENTER;
    int status = INVALID_VALUE;
    if (!memory_check((uintptr_t)target, size, READ_WRITE) &&
        !memory_check((uintptr_t)source, size, READ))
        status = stream_copy(stream, (uintptr_t)target, (uintptr_t)source, size);
    LEAVE(status, "target=%p, source=%p, size=%zu, kind=%d", target, source, size, kind);
}

int hipMemsetAsync(void *target, int value, size_t size, struct stream *stream) {
    ENTER;
    int status = memory_check((uintptr_t)target, size, READ_WRITE)
                     ? INVALID_VALUE
                     : stream_fill(stream, (uintptr_t)target, (unsigned char)value, size);
    LEAVE(status, "target=%p, value=%d, size=%zu", target, value, size);
}

/* --- streams and events -------------------------------------------------------------------- */

int hipStreamCreateWithFlags(struct stream **stream, unsigned flags) {
    ENTER;
    *stream = stream_create();
    LEAVE(OK, "flags=%u", flags);
}

int hipStreamDestroy(struct stream *stream) {
    ENTER;
    LEAVE(stream_destroy(stream), " ");
}

int hipStreamSynchronize(struct stream *stream) {
    ENTER;
    LEAVE(stream_synchronize(stream), " ");
}

int hipStreamQuery(struct stream *stream) {
    ENTER;
    LEAVE(stream_query(stream), " ");
}

int hipStreamWaitEvent(struct stream *stream, struct event *event, unsigned flags) {
    ENTER;
    LEAVE(stream_wait(stream, event), "flags=%u", flags);
}

int hipEventCreateWithFlags(struct event **event, unsigned flags) {
    ENTER;
    *event = event_create();
    LEAVE(OK, "flags=%u", flags);
}

int hipEventDestroy(struct event *event) {
    ENTER;
    LEAVE(event_destroy(event), " ");
}

int hipEventRecord(struct event *event, struct stream *stream) {
    ENTER;
    LEAVE(event_record(event, stream), " ");
}

int hipEventQuery(struct event *event) {
    ENTER;
    LEAVE(event_query(event), " ");
}

int hipEventSynchronize(struct event *event) {
    ENTER;
    LEAVE(event_synchronize(event), " ");
}

/* --- errors -------------------------------------------------------------------------------- */

int hipGetLastError(void) {
    int status = last_error;
    last_error = OK;
    return status;
}

const char *hipGetErrorName(int status) {
    switch (status) {
        case OK: return "hipSuccess";
        case INVALID_VALUE: return "hipErrorInvalidValue";
        case OUT_OF_MEMORY: return "hipErrorOutOfMemory";
        case NOT_INITIALIZED: return "hipErrorNotInitialized";
        case NO_DEVICE: return "hipErrorNoDevice";
        case INVALID_DEVICE: return "hipErrorInvalidDevice";
        case INVALID_CONTEXT: return "hipErrorInvalidContext";
        case INVALID_HANDLE: return "hipErrorInvalidHandle";
        case NOT_FOUND: return "hipErrorNotFound";
        case NOT_READY: return "hipErrorNotReady";
        case ILLEGAL_ADDRESS: return "hipErrorIllegalAddress";
        case LAUNCH_FAILED: return "hipErrorLaunchFailure";
        case NOT_SUPPORTED: return "hipErrorNotSupported";
        default: return "hipErrorUnknown";
    }
}

const char *hipGetErrorString(int status) { return hipGetErrorName(status); }
