/* Spans of addresses, chunks of memory, and the mappings between them.

   A device's memory is one memory file; a chunk is a part of it, a mapping a shared view of that
   part. A span is a mapping without access, so that touching a hole, or memory whose access was
   never set, is SIGSEGV, as it is an error on a device. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "core.h"

struct chunk {
    uint64_t handle;
    size_t offset, size; /* in the device's memory file */
    int device, handles, mappings;
    int held; /* spans that keep its memory (`settings.keeps_memory`) */
    struct chunk *next;
};

struct hold {
    struct chunk *chunk;
    struct hold *next;
};

struct span {
    uintptr_t base;
    size_t size;
    struct hold *holds;
    struct span *next;
};

struct mapping {
    uintptr_t base;
    size_t size;
    struct chunk *chunk;
    int access[MAX_DEVICES];
    struct mapping *next;
};

struct pinned {
    void *pointer;
    struct pinned *next;
};

static struct span *spans;
static struct chunk *chunks;
static struct mapping *mappings;
static struct pinned *pinned;
static int files[MAX_DEVICES]; /* descriptors; 0: not opened yet */
static uint64_t next_handle = 0x1000;

#define NEW(type, ...) memcpy(malloc(sizeof(type)), &(type){__VA_ARGS__}, sizeof(type))
#define UNLINK(list, item)                                  \
    do {                                                    \
        __typeof__(list) *link_ = &(list);                  \
        while (*link_ != (item)) link_ = &(*link_)->next;   \
        *link_ = (item)->next;                              \
    } while (0)

static struct span *span_around(uintptr_t base, size_t size) {
    for (struct span *s = spans; s; s = s->next)
        if (base >= s->base && base - s->base < s->size && size <= s->size - (base - s->base))
            return s;
    return NULL;
}

static struct mapping *mapping_at(uintptr_t address) {
    for (struct mapping *m = mappings; m; m = m->next)
        if (address >= m->base && address - m->base < m->size) return m;
    return NULL;
}

static int any_mapping(uintptr_t base, size_t size) {
    for (struct mapping *m = mappings; m; m = m->next)
        if (m->base < base + size && base < m->base + m->size) return 1;
    return 0;
}

/* True if whole mappings cover the range without a hole. */
static int covered(uintptr_t base, size_t size) {
    uintptr_t end = base + size;
    while (base < end) {
        struct mapping *m = mapping_at(base);
        if (!m || m->base != base) return 0;
        base += m->size;
    }
    return base == end && size > 0;
}

static int whole(size_t size) { return size > 0 && size % settings.granularity == 0; }

/* --- addresses ----------------------------------------------------------------------------- */

int memory_reserve(uintptr_t *base, size_t size, size_t alignment) {
    if (!whole(size) || (alignment & (alignment - 1))) return INVALID_VALUE;
    if (alignment < settings.granularity) alignment = settings.granularity;
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    char *wide = mmap(NULL, size + alignment, PROT_NONE, flags, -1, 0);
    if (wide == MAP_FAILED) return OUT_OF_MEMORY;
    uintptr_t start = (uintptr_t)wide, begin = (start + alignment - 1) & ~(alignment - 1);
    if (begin > start) munmap(wide, begin - start);
    munmap((void *)(begin + size), start + alignment - begin);
    spans = NEW(struct span, .base = begin, .size = size, .next = spans);
    accounts.spans++;
    *base = begin;
    return OK;
}

/* Give a chunk's memory back once nobody refers to it any more. */
static void drop_if_unused(struct chunk *chunk) {
    if (chunk->handles || chunk->mappings || chunk->held) return;
    int mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
    fallocate(files[chunk->device], mode, chunk->offset, chunk->size);
    UNLINK(chunks, chunk);
    free(chunk);
    accounts.chunks--;
}

int memory_free_span(uintptr_t base, size_t size) {
    struct span *span = span_around(base, size);
    if (!span || span->base != base || span->size != size || any_mapping(base, size))
        return INVALID_VALUE;
    while (span->holds) {
        struct hold *hold = span->holds;
        span->holds = hold->next;
        hold->chunk->held--;
        drop_if_unused(hold->chunk);
        free(hold);
    }
    munmap((void *)base, size);
    UNLINK(spans, span);
    free(span);
    accounts.spans--;
    return OK;
}

/* --- memory -------------------------------------------------------------------------------- */

static size_t used(int device) {
    size_t bytes = 0;
    for (struct chunk *c = chunks; c; c = c->next)
        if (c->device == device) bytes += c->size;
    return bytes;
}

int memory_info(int device, size_t *free_bytes, size_t *total_bytes) {
    *total_bytes = settings.memory;
    *free_bytes = settings.memory - used(device);
    return OK;
}

static struct chunk *overlapping(int device, size_t offset, size_t size) {
    for (struct chunk *c = chunks; c; c = c->next)
        if (c->device == device && c->offset < offset + size && offset < c->offset + c->size)
            return c;
    return NULL;
}

/* A new chunk's content is undefined: here it is NaN in every format, so that using it shows. */
static int fill_with_nan(int file, size_t offset, size_t size) {
    if (fallocate(file, FALLOC_FL_KEEP_SIZE, offset, size)) return OUT_OF_MEMORY;
    void *view = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, file, offset);
    if (view == MAP_FAILED) return OUT_OF_MEMORY;
    memset(view, 0xff, size);
    munmap(view, size);
    return OK;
}

int memory_create(uint64_t *handle, size_t size, int device) {
    if (device < 0 || device >= (int)settings.devices) return INVALID_DEVICE;
    if (!whole(size)) return INVALID_VALUE;
    if (!files[device]) {
        files[device] = memfd_create("emulated-device", MFD_CLOEXEC);
        if (files[device] < 0 || ftruncate(files[device], settings.memory)) return OUT_OF_MEMORY;
    }
    size_t offset = 0;
    for (struct chunk *c; (c = overlapping(device, offset, size));) offset = c->offset + c->size;
    if (offset + size > settings.memory) return OUT_OF_MEMORY;
    int status = fill_with_nan(files[device], offset, size);
    if (status) return status;
    *handle = next_handle++;
    chunks = NEW(struct chunk, .handle = *handle, .offset = offset, .size = size,
                 .device = device, .handles = 1, .next = chunks);
    accounts.chunks++;
    accounts.handles++;
    return OK;
}

static struct chunk *alive(uint64_t handle) {
    for (struct chunk *c = chunks; c; c = c->next)
        if (c->handle == handle) return c;
    return NULL;
}

static struct chunk *chunk_of(uint64_t handle) {
    struct chunk *chunk = alive(handle);
    return chunk && chunk->handles ? chunk : NULL;
}

int memory_retain(uint64_t *handle, uintptr_t address) {
    struct mapping *mapping = mapping_at(address);
    if (!mapping) return INVALID_VALUE;
    mapping->chunk->handles++;
    accounts.handles++;
    *handle = mapping->chunk->handle;
    return OK;
}

int memory_release(uint64_t handle) {
    struct chunk *chunk = chunk_of(handle);
    if (!chunk) return INVALID_VALUE;
    chunk->handles--;
    accounts.handles--;
    drop_if_unused(chunk);
    return OK;
}

/* --- mappings ------------------------------------------------------------------------------ */

int memory_map(uintptr_t base, size_t size, size_t offset, uint64_t handle) {
    /* Drivers take a handle that was released as long as its chunk is mapped elsewhere. */
    struct chunk *chunk = alive(handle);
    if (!chunk || !whole(size) || base % settings.granularity || offset % settings.granularity)
        return INVALID_VALUE;
    if (!span_around(base, size) || any_mapping(base, size)) return INVALID_VALUE;
    if (offset + size > chunk->size) return NOT_SUPPORTED;
    int flags = MAP_SHARED | MAP_FIXED;
    off_t place = chunk->offset + offset;
    if (mmap((void *)base, size, PROT_NONE, flags, files[chunk->device], place) == MAP_FAILED)
        return OUT_OF_MEMORY;
    mappings =
        NEW(struct mapping, .base = base, .size = size, .chunk = chunk, .next = mappings);
    chunk->mappings++;
    accounts.mappings++;
    if (!chunk->handles) accounts.violations++;
    return OK;
}

int memory_unmap(uintptr_t base, size_t size) {
    struct span *span = span_around(base, size);
    if (!span || !covered(base, size)) return INVALID_VALUE;
    if (stream_uses(base, size)) accounts.violations++;
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED;
    if (mmap((void *)base, size, PROT_NONE, flags, -1, 0) == MAP_FAILED) return OUT_OF_MEMORY;
    for (uintptr_t at = base; at < base + size;) {
        struct mapping *mapping = mapping_at(at);
        struct chunk *chunk = mapping->chunk;
        at += mapping->size;
        if (settings.keeps_memory) {
            span->holds = NEW(struct hold, .chunk = chunk, .next = span->holds);
            chunk->held++;
        }
        UNLINK(mappings, mapping);
        free(mapping);
        chunk->mappings--;
        accounts.mappings--;
        drop_if_unused(chunk);
    }
    return OK;
}

int memory_is_hole(uintptr_t base, size_t size) {
    return span_around(base, size) && whole(size) && !any_mapping(base, size);
}

static int any_access(const struct mapping *mapping) {
    int access = NO_ACCESS;
    for (int device = 0; device < MAX_DEVICES; device++) access |= mapping->access[device];
    return access;
}

int memory_set_access(uintptr_t base, size_t size, int device, int access) {
    if (device < 0 || device >= (int)settings.devices) return INVALID_DEVICE;
    if (access != NO_ACCESS && access != READ && access != READ_WRITE) return INVALID_VALUE;
    if (!covered(base, size)) return INVALID_VALUE;
    for (uintptr_t at = base; at < base + size;) {
        struct mapping *mapping = mapping_at(at);
        mapping->access[device] = access;
        int all = any_access(mapping);
        int protection = (all & 1 ? PROT_READ : 0) | (all & 2 ? PROT_WRITE : 0);
        if (mprotect((void *)at, mapping->size, protection)) return OUT_OF_MEMORY;
        at += mapping->size;
    }
    return OK;
}

int memory_get_access(uintptr_t address, int device, int *access) {
    struct mapping *mapping = mapping_at(address);
    if (!mapping || device < 0 || device >= (int)settings.devices) return INVALID_VALUE;
    *access = mapping->access[device];
    return OK;
}

int memory_check(uintptr_t address, size_t size, int access) {
    while (size && span_around(address, 1)) {
        struct mapping *mapping = mapping_at(address);
        if (!mapping || (any_access(mapping) & access) != access) return ILLEGAL_ADDRESS;
        size_t here = mapping->base + mapping->size - address;
        if (here >= size) break;
        address += here;
        size -= here;
    }
    return OK;
}

/* --- host memory --------------------------------------------------------------------------- */

int memory_pin(void **pointer, size_t size) {
    if (!size) return INVALID_VALUE;
    if (posix_memalign(pointer, 4096, size)) return OUT_OF_MEMORY;
    pinned = NEW(struct pinned, .pointer = *pointer, .next = pinned);
    accounts.pinned++;
    return OK;
}

int memory_unpin(void *pointer) {
    for (struct pinned *p = pinned; p; p = p->next)
        if (p->pointer == pointer) {
            UNLINK(pinned, p);
            free(p);
            free(pointer);
            accounts.pinned--;
            return OK;
        }
    return INVALID_VALUE;
}

void memory_reset(void) {
    settings.keeps_memory = 0;
    while (mappings) memory_unmap(mappings->base, mappings->size);
    while (spans) memory_free_span(spans->base, spans->size);
    while (chunks) memory_release(chunks->handle);
    while (pinned) memory_unpin(pinned->pointer);
    for (int device = 0; device < MAX_DEVICES; device++) {
        if (files[device]) close(files[device]);
        files[device] = 0;
    }
}
