/* What both vendors' drivers have in common: virtual memory, streams and events, over host memory.

       faces      cuda.c            hip.c             the vendors' names and structures
                     \              /
       core       memory.c   streams.c   control.c    the documented rules

   Every call of a face holds one lock from `emu_enter` to `emu_leave`, so nothing in the core needs
   one of its own. Statuses are the numbers that both vendors use. */
#pragma once
#include <stddef.h>
#include <stdint.h>

enum status {
    OK = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NOT_INITIALIZED = 3,
    NO_DEVICE = 100,
    INVALID_DEVICE = 101,
    INVALID_CONTEXT = 201,
    INVALID_HANDLE = 400,
    NOT_FOUND = 500,
    NOT_READY = 600,
    ILLEGAL_ADDRESS = 700,
    LAUNCH_FAILED = 719,
    NOT_SUPPORTED = 801,
};

enum { MAX_DEVICES = 8 };
enum access { NO_ACCESS = 0, READ = 1, READ_WRITE = 3 };

/* --- control.c: settings, accounts, faults ------------------------------------------------- */

struct settings {
    uint64_t devices;
    uint64_t memory;       /* bytes of each device */
    uint64_t granularity;  /* bytes */
    uint64_t version;      /* what the driver says it is; 0: the face's own */
    uint64_t virtual_memory; /* whether the devices say that they have it */
    uint64_t exports;      /* CUDA: memory can be exported as a file descriptor */
    uint64_t strict;       /* CUDA: all that is about memory, streams and events wants a context */
    uint64_t lose_after;   /* after that many calls the device is lost; 0: never */
    uint64_t deferred;     /* queued work runs only when somebody waits for it */
    uint64_t silent_map;   /* ROCm: a map that fails says that it succeeded */
    uint64_t keeps_memory; /* ROCm: memory comes back only with the address range it was mapped in */
};

struct accounts {
    int64_t spans, chunks, handles, mappings, pinned, streams, events, contexts, queued, violations;
};

extern struct settings settings;
extern struct accounts accounts;

/* Begins a call: counts it, and gives the status of a fault that was asked for, or OK. */
int emu_enter(const char *function);
/* Ends a call: writes it to the trace, with its arguments as printf would, and gives the status. */
__attribute__((format(printf, 3, 4))) int emu_leave(
    const char *function, int status, const char *format, ...);

/* --- memory.c ------------------------------------------------------------------------------ */

int memory_reserve(uintptr_t *base, size_t size, size_t alignment);
int memory_free_span(uintptr_t base, size_t size);
int memory_create(uint64_t *handle, size_t size, int device);
int memory_retain(uint64_t *handle, uintptr_t address);
int memory_release(uint64_t handle);
/* NOT_SUPPORTED for a range that ends behind the chunk. */
int memory_map(uintptr_t base, size_t size, size_t offset, uint64_t handle);
int memory_unmap(uintptr_t base, size_t size);
int memory_is_hole(uintptr_t base, size_t size);
int memory_set_access(uintptr_t base, size_t size, int device, int access);
int memory_get_access(uintptr_t address, int device, int *access);
int memory_info(int device, size_t *free_bytes, size_t *total_bytes);
/* OK if `size` bytes may be accessed so; memory outside of all spans is the host's, and may. */
int memory_check(uintptr_t address, size_t size, int access);
int memory_pin(void **pointer, size_t size);
int memory_unpin(void *pointer);
void memory_reset(void);

/* --- streams.c ----------------------------------------------------------------------------- */

struct stream;
struct event;

struct stream *stream_create(void);
int stream_destroy(struct stream *stream);
int stream_wait(struct stream *stream, struct event *event);
int stream_synchronize(struct stream *stream);
int stream_query(struct stream *stream);
int stream_copy(struct stream *stream, uintptr_t target, uintptr_t source, size_t size);
int stream_fill(struct stream *stream, uintptr_t target, unsigned char value, size_t size);
struct event *event_create(void);
int event_destroy(struct event *event);
int event_record(struct event *event, struct stream *stream);
int event_query(struct event *event);
int event_synchronize(struct event *event);
int device_synchronize(void);
/* True if work that has not run yet will touch those bytes. */
int stream_uses(uintptr_t address, size_t size);
void streams_reset(void);
