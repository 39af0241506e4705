/* What the tests steer and ask: settings, accounts, the trace, and faults. */
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core.h"

enum { MAX_FUNCTIONS = 128, NAME = 48 };

#define DEFAULTS \
    {.devices = 1, .memory = 256 << 20, .granularity = 2 << 20, .virtual_memory = 1, .exports = 1}
struct settings settings = DEFAULTS;
struct accounts accounts;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct function {
    char name[NAME];
    uint64_t calls;
} functions[MAX_FUNCTIONS];
static struct {
    char name[NAME]; /* empty: any function */
    uint64_t left;   /* the fault comes when this reaches 0 */
    int status;
} fault;
static int lost; /* what every call answers, once the device is gone */
static uint64_t total_calls;
static char *trace;
static size_t trace_length, trace_room;

/* The name that people know: cuMemGetInfo for cuMemGetInfo_v2, hipGetDeviceProperties for ...R0600. */
static void plain_name(char plain[NAME], const char *function) {
    snprintf(plain, NAME, "%s", function);
    for (const char **suffix = (const char *[]){"_v2", "R0600", NULL}; *suffix; suffix++) {
        size_t length = strlen(plain), tail = strlen(*suffix);
        if (length > tail && !strcmp(plain + length - tail, *suffix)) plain[length - tail] = 0;
    }
}

static struct function *function_named(const char *name) {
    struct function *f = functions;
    while (f < functions + MAX_FUNCTIONS - 1 && f->name[0] && strcmp(f->name, name)) f++;
    memcpy(f->name, name, strlen(name) + 1);
    return f;
}

int emu_enter(const char *function) {
    char name[NAME];
    plain_name(name, function);
    pthread_mutex_lock(&lock);
    function_named(name)->calls++;
    total_calls++;
    if (fault.left && (!fault.name[0] || !strcmp(fault.name, name)) && !--fault.left)
        return fault.status;
    if (settings.lose_after && total_calls > settings.lose_after) return LAUNCH_FAILED;
    return lost;
}

static void append(const char *text) {
    size_t length = strlen(text);
    if (trace_length + length + 1 > trace_room) {
        trace_room = 2 * (trace_length + length + 1);
        trace = realloc(trace, trace_room);
        if (!trace) abort();
    }
    memcpy(trace + trace_length, text, length + 1);
    trace_length += length;
}

int emu_leave(const char *function, int status, const char *format, ...) {
    char name[NAME], arguments[256], line[NAME + 320];
    plain_name(name, function);
    va_list list;
    va_start(list, format);
    vsnprintf(arguments, sizeof arguments, format, list);
    va_end(list);
    snprintf(line, sizeof line, "%s(%s) = %d\n", name, arguments, status);
    append(line);
    pthread_mutex_unlock(&lock);
    return status;
}

/* --- for the tests ------------------------------------------------------------------------- */

/* Everything as it was when the library was loaded; whatever is still there is thrown away. */
void emu_reset(void) {
    pthread_mutex_lock(&lock);
    streams_reset();
    memory_reset();
    settings = (struct settings)DEFAULTS;
    memset(&accounts, 0, sizeof accounts);
    memset(functions, 0, sizeof functions);
    memset(&fault, 0, sizeof fault);
    lost = 0;
    total_calls = trace_length = 0;
    pthread_mutex_unlock(&lock);
}

static const struct {
    const char *name;
    uint64_t *value;
} SETTINGS[] = {
    {"devices", &settings.devices},       {"memory", &settings.memory},
    {"version", &settings.version},       {"granularity", &settings.granularity},
    {"deferred", &settings.deferred},     {"silent_map", &settings.silent_map},
    {"keeps_memory", &settings.keeps_memory},
    {"virtual_memory", &settings.virtual_memory}, {"lose_after", &settings.lose_after},
    {"exports", &settings.exports},       {"strict", &settings.strict},
};

static const struct {
    const char *name;
    int64_t *value;
} ACCOUNTS[] = {
    {"spans", &accounts.spans},     {"chunks", &accounts.chunks},
    {"handles", &accounts.handles}, {"mappings", &accounts.mappings},
    {"pinned", &accounts.pinned},   {"streams", &accounts.streams},
    {"events", &accounts.events},   {"contexts", &accounts.contexts},
    {"queued", &accounts.queued},   {"violations", &accounts.violations},
};

/* 0, or -1 if there is no such setting. */
int emu_set(const char *name, uint64_t value) {
    for (size_t i = 0; i < sizeof SETTINGS / sizeof *SETTINGS; i++)
        if (!strcmp(SETTINGS[i].name, name)) {
            *SETTINGS[i].value = value;
            return 0;
        }
    return -1;
}

/* How many there are now, or -1 if nothing of that name is counted. */
int64_t emu_count(const char *name) {
    for (size_t i = 0; i < sizeof ACCOUNTS / sizeof *ACCOUNTS; i++)
        if (!strcmp(ACCOUNTS[i].name, name)) return *ACCOUNTS[i].value;
    return -1;
}

/* How often a function was called since the last reset; of all functions, if the name is empty. */
uint64_t emu_calls(const char *name) {
    return *name ? function_named(name)->calls : total_calls;
}

/* Let the n-th call from now (from 1) of a function, or of any, do nothing and answer `status`. */
void emu_fail(const char *name, uint64_t nth, int status) {
    snprintf(fault.name, NAME, "%s", name);
    fault.left = nth;
    fault.status = status;
}

/* Let every call from now on answer `status`, as a driver does whose device is gone. */
void emu_lose(int status) { lost = status; }

/* One line for each call since the last reset. */
const char *emu_trace(void) { return trace && trace_length ? trace : ""; }
