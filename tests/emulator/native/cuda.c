/* libcuda.so.1: the CUDA driver's names and structures over the core.

   Rules after the CUDA Driver API reference, version 13: "Virtual Memory Management", "Stream
   Management", "Event Management", "Primary Context Management", "Memory Management". The
   declarations are our own, so that no toolkit is needed; that they are right is shown by the real
   binding, which runs on them. Kernels and modules are not there. */
#include <stdio.h>
#include <string.h>

#include "core.h"

typedef unsigned long long CUdeviceptr;
typedef unsigned long long Handle;

enum { PINNED = 1, POSIX_DESCRIPTOR = 1 };
enum location { DEVICE = 1, HOST = 2, HOST_NUMA = 3 };

typedef struct {
    int type, id;
} CUmemLocation;

typedef struct {
    int type, requested_handle_types;
    CUmemLocation location;
    void *win32_metadata;
    unsigned char compression, gpu_direct_rdma;
    unsigned short usage;
    unsigned char reserved[4];
} CUmemAllocationProp;

typedef struct {
    CUmemLocation location;
    int flags;
} CUmemAccessDesc;

typedef struct context {
    int device, retained;
} *CUcontext;

static struct context contexts[MAX_DEVICES];
enum { DEPTH = 16 };
static __thread CUcontext stack[DEPTH];
static __thread int depth; /* contexts on this thread's stack; the last one is current */
static int ready;

/* Begin a call; end it at once if there is a fault, cuInit was not called, or no context current. */
#define ENTER_ANYWAY                                           \
    do {                                                       \
        int status_ = emu_enter(__func__);                     \
        if (status_) return emu_leave(__func__, status_, " "); \
    } while (0)
#define ENTER                                                          \
    do {                                                               \
        ENTER_ANYWAY;                                                  \
        if (!ready) return emu_leave(__func__, NOT_INITIALIZED, " ");  \
    } while (0)
#define ENTER_WITH_CONTEXT                                                \
    do {                                                                  \
        ENTER;                                                            \
        if (!current()) return emu_leave(__func__, INVALID_CONTEXT, " "); \
    } while (0)
/* What the documentation names no context for, and a driver may yet want one. */
#define ENTER_FOR_WORK                                                    \
    do {                                                                  \
        ENTER;                                                            \
        if (settings.strict && !current())                                \
            return emu_leave(__func__, INVALID_CONTEXT, " ");             \
    } while (0)
#define LEAVE(status, ...) return emu_leave(__func__, (status), __VA_ARGS__)

static CUcontext current(void) {
    return depth && stack[depth - 1] && stack[depth - 1]->retained ? stack[depth - 1] : NULL;
}

static int known(int device) { return device >= 0 && device < (int)settings.devices; }

/* --- the driver and its devices ------------------------------------------------------------ */

int cuInit(unsigned flags) {
    ENTER_ANYWAY;
    if (flags) LEAVE(INVALID_VALUE, "flags=%u", flags);
    if (!settings.devices) LEAVE(NO_DEVICE, "flags=0");
    for (int device = 0; device < MAX_DEVICES; device++) contexts[device].device = device;
    ready = 1;
    LEAVE(OK, "flags=0");
}

int cuDriverGetVersion(int *version) {
    *version = settings.version ? (int)settings.version : 13000;
    return OK;
}

int cuDeviceGetCount(int *count) {
    ENTER;
    *count = (int)settings.devices;
    LEAVE(OK, " ");
}

int cuDeviceGet(int *device, int ordinal) {
    ENTER;
    *device = ordinal;
    LEAVE(known(ordinal) ? OK : INVALID_DEVICE, "ordinal=%d", ordinal);
}

int cuDeviceGetName(char *name, int length, int device) {
    ENTER;
    if (!known(device)) LEAVE(INVALID_DEVICE, "device=%d", device);
    snprintf(name, length, "Emulated GPU in host memory");
    LEAVE(OK, "device=%d", device);
}

int cuDeviceTotalMem_v2(size_t *bytes, int device) {
    ENTER;
    *bytes = settings.memory;
    LEAVE(known(device) ? OK : INVALID_DEVICE, "device=%d", device);
}

int cuDeviceGetAttribute(int *value, int attribute, int device) {
    ENTER;
    if (!known(device)) LEAVE(INVALID_DEVICE, "device=%d", device);
    switch (attribute) {
        case 16: *value = 132; break; /* MULTIPROCESSOR_COUNT */
        case 75: *value = 9; break;   /* COMPUTE_CAPABILITY_MAJOR */
        case 76: *value = 0; break;   /* COMPUTE_CAPABILITY_MINOR */
        case 102: *value = (int)settings.virtual_memory; break; /* VIRTUAL_MEMORY_MANAGEMENT_... */
        case 103: *value = (int)settings.exports; break; /* HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED */
        default: LEAVE(INVALID_VALUE, "attribute=%d", attribute);
    }
    LEAVE(OK, "attribute=%d, device=%d", attribute, device);
}

/* --- contexts ------------------------------------------------------------------------------ */

int cuDevicePrimaryCtxRetain(CUcontext *context, int device) {
    ENTER;
    if (!known(device)) LEAVE(INVALID_DEVICE, "device=%d", device);
    contexts[device].retained++;
    accounts.contexts++;
    *context = &contexts[device];
    LEAVE(OK, "device=%d", device);
}

int cuDevicePrimaryCtxRelease_v2(int device) {
    ENTER;
    if (!known(device)) LEAVE(INVALID_DEVICE, "device=%d", device);
    if (!contexts[device].retained) LEAVE(INVALID_CONTEXT, "device=%d", device);
    contexts[device].retained--;
    accounts.contexts--;
    LEAVE(OK, "device=%d", device);
}

int cuCtxPushCurrent_v2(CUcontext context) {
    ENTER;
    if (!context || !context->retained || depth == DEPTH) LEAVE(INVALID_CONTEXT, " ");
    stack[depth++] = context;
    LEAVE(OK, "device=%d", context->device);
}

int cuCtxPopCurrent_v2(CUcontext *context) {
    ENTER;
    if (!depth) LEAVE(INVALID_CONTEXT, " ");
    *context = stack[--depth];
    LEAVE(OK, " ");
}

int cuCtxSetCurrent(CUcontext context) {
    ENTER;
    if (context && !context->retained) LEAVE(INVALID_CONTEXT, " ");
    if (!depth) depth = 1;
    stack[depth - 1] = context;
    LEAVE(OK, " ");
}

int cuCtxGetCurrent(CUcontext *context) {
    ENTER;
    *context = current();
    LEAVE(OK, " ");
}

int cuCtxSynchronize(void) {
    ENTER_WITH_CONTEXT;
    LEAVE(device_synchronize(), " ");
}

/* --- virtual memory ------------------------------------------------------------------------ */

int cuMemGetInfo_v2(size_t *free_bytes, size_t *total_bytes) {
    ENTER_WITH_CONTEXT;
    LEAVE(memory_info(current()->device, free_bytes, total_bytes), " ");
}

static int check_properties(const CUmemAllocationProp *properties) {
    if (!properties || properties->type != PINNED) return INVALID_VALUE;
    int exported = settings.exports ? POSIX_DESCRIPTOR : 0;
    if (properties->requested_handle_types & ~exported) return NOT_SUPPORTED;
    switch (properties->location.type) {
        case DEVICE: return known(properties->location.id) ? OK : INVALID_DEVICE;
        case HOST:
        case HOST_NUMA: return NOT_SUPPORTED; /* documented; this emulator has none */
        default: return INVALID_VALUE;
    }
}

int cuMemGetAllocationGranularity(
    size_t *granularity, const CUmemAllocationProp *properties, int option) {
    ENTER_FOR_WORK;
    int status = option == 0 || option == 1 ? check_properties(properties) : INVALID_VALUE;
    if (!status) *granularity = settings.granularity;
    LEAVE(status, "option=%d", option);
}

int cuMemAddressReserve(
    CUdeviceptr *base, size_t size, size_t alignment, CUdeviceptr hint, unsigned long long flags) {
    ENTER_FOR_WORK;
    uintptr_t start = 0;
    int status = flags ? INVALID_VALUE : memory_reserve(&start, size, alignment);
    (void)hint; /* only a wish */
    *base = start;
    LEAVE(status, "size=%zu, alignment=%zu", size, alignment);
}

int cuMemAddressFree(CUdeviceptr base, size_t size) {
    ENTER_FOR_WORK;
    LEAVE(memory_free_span(base, size), "base=%#llx, size=%zu", base, size);
}

int cuMemCreate(
    Handle *handle, size_t size, const CUmemAllocationProp *properties, unsigned long long flags) {
    ENTER_FOR_WORK;
    uint64_t made = 0;
    int status = flags ? INVALID_VALUE : check_properties(properties);
    if (!status) status = memory_create(&made, size, properties->location.id);
    *handle = made;
    LEAVE(status, "size=%zu", size);
}

int cuMemRetainAllocationHandle(Handle *handle, void *address) {
    ENTER_FOR_WORK;
    uint64_t found = 0;
    int status = memory_retain(&found, (uintptr_t)address);
    *handle = found;
    LEAVE(status, "address=%p", address);
}

int cuMemRelease(Handle handle) {
    ENTER_FOR_WORK;
    LEAVE(memory_release(handle), "handle=%#llx", handle);
}

int cuMemMap(
    CUdeviceptr base, size_t size, size_t offset, Handle handle, unsigned long long flags) {
    ENTER_FOR_WORK;
    int status = flags || offset ? INVALID_VALUE : memory_map(base, size, offset, handle);
    LEAVE(status, "base=%#llx, size=%zu, handle=%#llx", base, size, handle);
}

int cuMemUnmap(CUdeviceptr base, size_t size) {
    ENTER_FOR_WORK;
    int status = memory_unmap(base, size);
    if (status == INVALID_VALUE && memory_is_hole(base, size)) {
        accounts.violations++; /* a driver says nothing; a backend is not to rely on it */
        status = OK;
    }
    LEAVE(status, "base=%#llx, size=%zu", base, size);
}

int cuMemSetAccess(
    CUdeviceptr base, size_t size, const CUmemAccessDesc *descriptions, size_t count) {
    ENTER_FOR_WORK;
    int status = descriptions && count ? OK : INVALID_VALUE;
    for (size_t i = 0; i < count && !status; i++)
        status = descriptions[i].location.type != DEVICE
                     ? NOT_SUPPORTED
                     : memory_set_access(
                           base, size, descriptions[i].location.id, descriptions[i].flags);
    LEAVE(status, "base=%#llx, size=%zu, count=%zu", base, size, count);
}

int cuMemGetAccess(unsigned long long *flags, const CUmemLocation *location, CUdeviceptr address) {
    ENTER_FOR_WORK;
    int access = NO_ACCESS;
    int status = location->type != DEVICE ? INVALID_VALUE
                                          : memory_get_access(address, location->id, &access);
    *flags = access;
    LEAVE(status, "address=%#llx", address);
}

/* --- host memory and copies ---------------------------------------------------------------- */

int cuMemHostAlloc(void **pointer, size_t size, unsigned flags) {
    ENTER_WITH_CONTEXT;
    LEAVE(memory_pin(pointer, size), "size=%zu, flags=%u", size, flags);
}

int cuMemFreeHost(void *pointer) {
    ENTER_WITH_CONTEXT;
    LEAVE(memory_unpin(pointer), "pointer=%p", pointer);
}

/* Memory that may not be accessed is refused at once, as far as it is known then. */
static int copy(uintptr_t target, uintptr_t source, size_t size, struct stream *stream) {
    if (memory_check(target, size, READ_WRITE) || memory_check(source, size, READ))
        return INVALID_VALUE;
    return stream_copy(stream, target, source, size);
}

int cuMemcpyHtoDAsync_v2(CUdeviceptr target, const void *source, size_t size, struct stream *s) {
    ENTER_WITH_CONTEXT;
    LEAVE(copy(target, (uintptr_t)source, size, s), "target=%#llx, size=%zu", target, size);
}

int cuMemcpyDtoHAsync_v2(void *target, CUdeviceptr source, size_t size, struct stream *s) {
    ENTER_WITH_CONTEXT;
    LEAVE(copy((uintptr_t)target, source, size, s), "source=%#llx, size=%zu", source, size);
}

int cuMemcpyDtoDAsync_v2(CUdeviceptr target, CUdeviceptr source, size_t size, struct stream *s) {
    ENTER_WITH_CONTEXT;
    LEAVE(copy(target, source, size, s), "target=%#llx, source=%#llx, size=%zu", target, source,
          size);
}

int cuMemsetD8Async(CUdeviceptr target, unsigned char value, size_t size, struct stream *stream) {
    ENTER_WITH_CONTEXT;
    int status = memory_check(target, size, READ_WRITE)
                     ? INVALID_VALUE
                     : stream_fill(stream, target, value, size);
    LEAVE(status, "target=%#llx, value=%d, size=%zu", target, value, size);
}

/* --- streams and events -------------------------------------------------------------------- */

int cuStreamCreate(struct stream **stream, unsigned flags) {
    ENTER_WITH_CONTEXT;
    *stream = stream_create();
    LEAVE(OK, "flags=%u", flags);
}

int cuStreamDestroy_v2(struct stream *stream) {
    ENTER_FOR_WORK;
    LEAVE(stream_destroy(stream), " ");
}

int cuStreamSynchronize(struct stream *stream) {
    ENTER_WITH_CONTEXT;
    LEAVE(stream_synchronize(stream), " ");
}

int cuStreamQuery(struct stream *stream) {
    ENTER_WITH_CONTEXT;
    LEAVE(stream_query(stream), " ");
}

int cuStreamWaitEvent(struct stream *stream, struct event *event, unsigned flags) {
    ENTER_WITH_CONTEXT;
    LEAVE(stream_wait(stream, event), "flags=%u", flags);
}

int cuEventCreate(struct event **event, unsigned flags) {
    ENTER_WITH_CONTEXT;
    *event = event_create();
    LEAVE(OK, "flags=%u", flags);
}

int cuEventDestroy_v2(struct event *event) {
    ENTER_FOR_WORK;
    LEAVE(event_destroy(event), " ");
}

int cuEventRecord(struct event *event, struct stream *stream) {
    ENTER_WITH_CONTEXT;
    LEAVE(event_record(event, stream), " ");
}

int cuEventQuery(struct event *event) {
    ENTER_FOR_WORK;
    LEAVE(event_query(event), " ");
}

int cuEventSynchronize(struct event *event) {
    ENTER_FOR_WORK;
    LEAVE(event_synchronize(event), " ");
}

/* --- finding functions --------------------------------------------------------------------- */

int cuGetErrorName(int status, const char **name); /* cuda_errors.c */
int cuGetErrorString(int status, const char **text);

#define ENTRY(name) {#name, (void *)name}
#define ENTRY_V2(name) {#name, (void *)name##_v2}
int cuGetProcAddress_v2(
    const char *name, void **function, int version, unsigned long long flags, int *found);

static const struct {
    const char *name;
    void *function;
} FUNCTIONS[] = {
    ENTRY(cuInit), ENTRY(cuDriverGetVersion), ENTRY(cuDeviceGetCount), ENTRY(cuDeviceGet),
    ENTRY(cuDeviceGetName), ENTRY_V2(cuDeviceTotalMem), ENTRY(cuDeviceGetAttribute),
    ENTRY(cuDevicePrimaryCtxRetain), ENTRY_V2(cuDevicePrimaryCtxRelease),
    ENTRY_V2(cuCtxPushCurrent), ENTRY_V2(cuCtxPopCurrent), ENTRY(cuCtxSetCurrent),
    ENTRY(cuCtxGetCurrent), ENTRY(cuCtxSynchronize), ENTRY_V2(cuMemGetInfo),
    ENTRY(cuMemGetAllocationGranularity), ENTRY(cuMemAddressReserve), ENTRY(cuMemAddressFree),
    ENTRY(cuMemCreate), ENTRY(cuMemRetainAllocationHandle), ENTRY(cuMemRelease), ENTRY(cuMemMap),
    ENTRY(cuMemUnmap), ENTRY(cuMemSetAccess), ENTRY(cuMemGetAccess), ENTRY(cuMemHostAlloc),
    ENTRY(cuMemFreeHost), ENTRY_V2(cuMemcpyHtoDAsync), ENTRY_V2(cuMemcpyDtoHAsync),
    ENTRY_V2(cuMemcpyDtoDAsync), ENTRY(cuMemsetD8Async), ENTRY(cuStreamCreate),
    ENTRY_V2(cuStreamDestroy), ENTRY(cuStreamSynchronize), ENTRY(cuStreamQuery),
    ENTRY(cuStreamWaitEvent), ENTRY(cuEventCreate), ENTRY_V2(cuEventDestroy),
    ENTRY(cuEventRecord), ENTRY(cuEventQuery), ENTRY(cuEventSynchronize), ENTRY(cuGetErrorName),
    ENTRY(cuGetErrorString), ENTRY_V2(cuGetProcAddress),
};

int cuGetProcAddress_v2(
    const char *name, void **function, int version, unsigned long long flags, int *found) {
    (void)version, (void)flags;
    for (size_t i = 0; i < sizeof FUNCTIONS / sizeof *FUNCTIONS; i++)
        if (!strcmp(FUNCTIONS[i].name, name)) {
            *function = FUNCTIONS[i].function;
            if (found) *found = 0; /* CU_GET_PROC_ADDRESS_SUCCESS */
            return OK;
        }
    *function = NULL;
    if (found) *found = 1; /* CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND */
    return NOT_FOUND;
}

int cuGetProcAddress(const char *name, void **function, int version, unsigned long long flags) {
    return cuGetProcAddress_v2(name, function, version, flags, NULL);
}
