/* Streams of work, and events that mark a place in one.

   Work runs when it is submitted; with `settings.deferred`, when somebody waits for it, in the order
   of its stream, and across streams only as far as events say. So what forgets to wait reads old
   bytes. A poll lets one piece of work run, so that who only polls gets there too. */
#include <stdlib.h>
#include <string.h>

#include "core.h"

enum kind { COPY, FILL, RECORD, WAIT };

struct work {
    enum kind kind;
    uintptr_t target, source;
    size_t size;
    unsigned char value;
    struct event *event;
    struct stream *other; /* WAIT: where the event was recorded */
    uint64_t until;       /* WAIT: the ticket of the record that must have run */
    uint64_t ticket;      /* numbers all work of all streams in the order of submission */
    struct work *next;
};

struct stream {
    struct work *first, *last;
    struct stream *next;
};

struct event {
    struct stream *stream;
    uint64_t recorded, reached; /* tickets: of the last record, and of the last that has run */
};

static struct stream default_stream;
static struct stream *streams = &default_stream;
static uint64_t tickets;

static struct stream *resolved(struct stream *stream) { return stream ? stream : &default_stream; }

static int drain(struct stream *stream, uint64_t until);

static int run(const struct work *work) {
    switch (work->kind) {
        case RECORD:
            if (work->event->reached < work->ticket) work->event->reached = work->ticket;
            return OK;
        case WAIT:
            if (work->event->reached >= work->until) return OK;
            return drain(work->other, work->until);
        case FILL:
        case COPY:
            break;
    }
    if (memory_check(work->target, work->size, READ_WRITE) ||
        (work->kind == COPY && memory_check(work->source, work->size, READ))) {
        accounts.violations++;
        return ILLEGAL_ADDRESS;
    }
    if (work->kind == COPY)
        memmove((void *)work->target, (void *)work->source, work->size);
    else
        memset((void *)work->target, work->value, work->size);
    return OK;
}

static int run_first(struct stream *stream) {
    struct work *work = stream->first;
    stream->first = work->next;
    if (!stream->first) stream->last = NULL;
    int status = run(work);
    free(work);
    accounts.queued--;
    return status;
}

/* Run a stream's work up to a ticket; the first error is the answer, and the rest still runs. */
static int drain(struct stream *stream, uint64_t until) {
    int status = OK;
    while (stream->first && stream->first->ticket <= until) {
        int one = run_first(stream);
        if (!status) status = one;
    }
    return status;
}

static int submit(struct stream *stream, struct work work) {
    stream = resolved(stream);
    work.ticket = ++tickets;
    struct work *queued = memcpy(malloc(sizeof work), &work, sizeof work);
    if (stream->last)
        stream->last->next = queued;
    else
        stream->first = queued;
    stream->last = queued;
    accounts.queued++;
    return settings.deferred ? OK : drain(stream, UINT64_MAX);
}

struct stream *stream_create(void) {
    struct stream *stream = calloc(1, sizeof *stream);
    stream->next = default_stream.next;
    default_stream.next = stream;
    accounts.streams++;
    return stream;
}

int stream_destroy(struct stream *stream) {
    for (struct stream *s = streams; s; s = s->next)
        if (s->next == stream && stream) {
            int status = drain(stream, UINT64_MAX);
            s->next = stream->next;
            free(stream);
            accounts.streams--;
            return status;
        }
    return INVALID_HANDLE;
}

int stream_wait(struct stream *stream, struct event *event) {
    if (!event->recorded) return OK; /* an event that was never recorded is done */
    return submit(stream, (struct work){.kind = WAIT,
                                        .event = event,
                                        .other = event->stream,
                                        .until = event->recorded});
}

int stream_synchronize(struct stream *stream) { return drain(resolved(stream), UINT64_MAX); }

int stream_query(struct stream *stream) {
    stream = resolved(stream);
    if (!stream->first) return OK;
    int status = run_first(stream);
    return status ? status : NOT_READY;
}

int stream_copy(struct stream *stream, uintptr_t target, uintptr_t source, size_t size) {
    return submit(
        stream, (struct work){.kind = COPY, .target = target, .source = source, .size = size});
}

int stream_fill(struct stream *stream, uintptr_t target, unsigned char value, size_t size) {
    return submit(
        stream, (struct work){.kind = FILL, .target = target, .value = value, .size = size});
}

struct event *event_create(void) {
    accounts.events++;
    return calloc(1, sizeof(struct event));
}

static int awaited(const struct event *event) {
    for (struct stream *s = streams; s; s = s->next)
        for (struct work *w = s->first; w; w = w->next)
            if (w->event == event) return 1;
    return 0;
}

int event_destroy(struct event *event) {
    if (!event) return INVALID_HANDLE;
    int status = awaited(event) ? device_synchronize() : OK;
    free(event);
    accounts.events--;
    return status;
}

int event_record(struct event *event, struct stream *stream) {
    event->stream = resolved(stream);
    event->recorded = tickets + 1; /* the ticket that `submit` gives */
    return submit(stream, (struct work){.kind = RECORD, .event = event});
}

int event_query(struct event *event) {
    if (event->reached >= event->recorded) return OK;
    int status = run_first(event->stream);
    return status ? status : NOT_READY;
}

int event_synchronize(struct event *event) {
    return event->reached >= event->recorded ? OK : drain(event->stream, event->recorded);
}

int device_synchronize(void) {
    int status = OK;
    for (struct stream *s = streams; s; s = s->next) {
        int one = drain(s, UINT64_MAX);
        if (!status) status = one;
    }
    return status;
}

int stream_uses(uintptr_t address, size_t size) {
    for (struct stream *s = streams; s; s = s->next)
        for (struct work *w = s->first; w; w = w->next) {
            int reads = w->kind == COPY, writes = reads || w->kind == FILL;
            if (writes && w->target < address + size && address < w->target + w->size) return 1;
            if (reads && w->source < address + size && address < w->source + w->size) return 1;
        }
    return 0;
}

void streams_reset(void) {
    for (struct stream *s = streams; s; s = s->next)
        while (s->first) {
            struct work *work = s->first;
            s->first = work->next;
            free(work);
        }
    default_stream.last = NULL;
    while (default_stream.next) {
        struct stream *stream = default_stream.next;
        default_stream.next = stream->next;
        free(stream);
    }
}
