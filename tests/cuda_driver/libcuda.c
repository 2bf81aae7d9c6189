/* A libcuda that runs no kernel and holds its callers to the rules of the real one: a context has to be current, and memory, streams and
 * kernels belong to the context that they were made in. Who breaks a rule is told so and ends. Two cards; memory is the host's, zero at first.
 * What is copied to the card arrives when its stream is waited for, or for what follows in that stream, and is left as it is on the host until then;
 * what is copied to the host arrives when its stream is waited for. A line on stdout for whatever a test asks about. */
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int Result;
typedef uint64_t Address;

enum Kind { CONTEXT, STREAM, MODULE, FUNCTION, MEMORY, PINNED };
static const char *const NAMES[] = {"context", "stream", "module", "function", "memory", "pinned memory"};

/* Whatever lives in a context, and contexts themselves. */
typedef struct Thing {
    enum Kind kind;
    struct Thing *context, *next;
    int device, alive, shared_memory;
    char *memory;
    size_t bytes;
    /* of a stream: copies to the host that are under way; sources of those to the card, and what they held */
    struct Copy { void *to; const char *from; size_t bytes; struct Copy *next; } *copies, *uploads;
} Thing;

static pthread_mutex_t guard = PTHREAD_MUTEX_INITIALIZER;
static Thing *things;
static Thing *primary[2];
static int retained[2];
static _Thread_local Thing *stack[64];
static _Thread_local int depth;
/* Streams in which this thread's copies to the card may be under way. */
static _Thread_local Thing *uploading[64];
static _Thread_local int n_uploading;

static void say(const char *what, const char *about, int card) {
    printf("libcuda: %s%s of card %d\n", what, about, card);
    fflush(stdout);
}

static void broken(const char *rule) {
    printf("libcuda: RULE BROKEN: %s\n", rule);
    fflush(stdout);
    _Exit(99);
}

static void demand(int holds, const char *rule) {
    if (!holds)
        broken(rule);
}

static Thing *make(enum Kind kind, Thing *context) {
    Thing *thing = calloc(1, sizeof *thing);
    thing->kind = kind;
    thing->context = context;
    thing->alive = 1;
    pthread_mutex_lock(&guard);
    thing->next = things;
    things = thing;
    pthread_mutex_unlock(&guard);
    return thing;
}

static Thing *current(void) {
    demand(depth > 0 && stack[depth - 1] != NULL, "no context is current");
    demand(stack[depth - 1]->alive, "the current context was destroyed");
    return stack[depth - 1];
}

/* Things are never freed, so a handle that is none is not read from. */
static Thing *owned(void *handle, enum Kind kind) {
    Thing *thing, *context = current();
    pthread_mutex_lock(&guard);
    for (thing = things; thing != NULL && thing != handle; thing = thing->next)
        ;
    pthread_mutex_unlock(&guard);
    demand(thing != NULL && thing->kind == kind, "a handle of something else, or of the default stream");
    demand(thing->alive, "a handle of something that was destroyed");
    demand(thing->context == context, "a handle of another context");
    return thing;
}

static Thing *memory_at(Address address, size_t bytes) {
    Thing *thing, *context = current();
    pthread_mutex_lock(&guard);
    for (thing = things; thing != NULL; thing = thing->next)
        if (thing->kind == MEMORY && thing->alive && address >= (Address)thing->memory && address < (Address)thing->memory + thing->bytes)
            break;
    pthread_mutex_unlock(&guard);
    demand(thing != NULL && address + bytes <= (Address)thing->memory + thing->bytes, "an address outside of allocated memory");
    demand(thing->context == context, "memory of another context");
    return thing;
}

static Thing *make_context(int device) {
    Thing *context = make(CONTEXT, NULL);
    context->device = device;
    return context;
}

static void destroy_context(Thing *context) {
    pthread_mutex_lock(&guard);
    for (Thing *thing = things; thing != NULL; thing = thing->next)
        if (thing->context == context && thing->alive && thing->kind != FUNCTION) {
            printf("libcuda: left behind: %s\n", NAMES[thing->kind]);
            broken("a context was destroyed with things in it");
        }
    context->alive = 0;
    pthread_mutex_unlock(&guard);
}

Result cuInit(unsigned flags) { return flags; }
Result cuGetErrorName(Result error, const char **text) { return *text = "CUDA_ERROR", 0 * error; }
Result cuGetErrorString(Result error, const char **text) { return *text = "an error", 0 * error; }
Result cuDeviceGetCount(int *count) { return *count = 2, 0; }
Result cuDeviceGet(int *device, int ordinal) { return *device = ordinal, ordinal < 0 || ordinal > 1 ? 101 : 0; }

Result cuDeviceTotalMem_v2(size_t *bytes, int device) {
    (void)device;
    return *bytes = (size_t)1 << 34, 0;
}

Result cuDeviceGetName(char *name, int length, int device) {
    snprintf(name, length, "Rules %d", device);
    return 0;
}

Result cuDeviceGetAttribute(int *value, int attribute, int device) {
    demand(device == 0 || device == 1, "no such device");
    switch (attribute) {
    case 16: *value = 4; break;          /* multiprocessors */
    case 17: *value = 0; break;          /* whether kernels that take long are ended */
    case 75: *value = 9; break;          /* compute capability */
    case 76: *value = 0; break;
    case 97: *value = 227 << 10; break;  /* shared memory of a block */
    default: broken("an attribute that nobody should need");
    }
    return 0;
}

Result cuDevicePrimaryCtxRetain(Thing **context, int device) {
    if (getenv("LIBCUDA_FULL"))
        return 2; /* out of memory */
    if (retained[device]++ == 0)
        primary[device] = make_context(device);
    say("retained: the primary context", "", device);
    return *context = primary[device], 0;
}

Result cuDevicePrimaryCtxRelease_v2(int device) {
    demand(retained[device] > 0, "a primary context that nobody holds is released");
    if (--retained[device] == 0)
        destroy_context(primary[device]);
    say("released: the primary context", "", device);
    return 0;
}

Result cuCtxCreate_v4(Thing **context, void *parameters, unsigned flags, int device) {
    demand(parameters == NULL && flags == 0 && depth < 64, "a plain context");
    return stack[depth++] = *context = make_context(device), 0;
}

Result cuCtxDestroy_v2(Thing *context) {
    destroy_context(context);
    say("destroyed: a context", "", context->device);
    if (depth > 0 && stack[depth - 1] == context)
        depth--;
    return 0;
}

Result cuCtxPushCurrent_v2(Thing *context) {
    demand(context != NULL && context->kind == CONTEXT && context->alive, "a context that is none is pushed");
    demand(depth < 64, "contexts are pushed and not popped");
    return stack[depth++] = context, 0;
}

Result cuCtxPopCurrent_v2(Thing **context) {
    demand(depth > 0, "more contexts are popped than were pushed");
    return *context = stack[--depth], 0;
}

Result cuCtxGetCurrent(Thing **context) { return *context = depth > 0 ? stack[depth - 1] : NULL, 0; }
Result cuCtxGetDevice(int *device) { return *device = current()->device, 0; }

Result cuStreamCreate(Thing **stream, unsigned flags) {
    demand(flags == 1, "a stream that waits for the default one");
    return *stream = make(STREAM, current()), 0;
}

Result cuStreamSynchronize(Thing *stream) {
    struct Copy *copy = owned(stream, STREAM)->copies, *upload = stream->uploads;
    int kept = 0;
    for (int i = 0; i < n_uploading; i++)
        if (uploading[i] != stream)
            uploading[kept++] = uploading[i];
    n_uploading = kept;
    stream->copies = stream->uploads = NULL;
    while (upload != NULL) {
        struct Copy *next = upload->next;
        demand(memcmp(upload->to, upload->from, upload->bytes) == 0, "the source of a copy changed before its stream was waited for");
        free(upload->to);
        free(upload);
        upload = next;
    }
    while (copy != NULL) { /* in any order: their sources do not change any more */
        struct Copy *next = copy->next;
        memcpy(copy->to, copy->from, copy->bytes);
        free(copy);
        copy = next;
    }
    return 0;
}

Result cuStreamDestroy_v2(Thing *stream) {
    demand(owned(stream, STREAM)->copies == NULL, "a stream is destroyed before it is done");
    return stream->alive = 0;
}

/* A driver as old as LIBCUDA_VERSION says loads only what is marked as an older compiler's. */
Result cuDriverGetVersion(int *version) {
    const char *old = getenv("LIBCUDA_VERSION");
    return *version = old ? atoi(old) : 99000, 0;
}

/* Code with nothing behind its first bytes is refused, as a real driver does. */
Result cuModuleLoadData(Thing **module, const void *code) {
    demand(memcmp(code, "\177ELF", 4) == 0, "code that is no cubin");
    if ((getenv("LIBCUDA_VERSION") && ((const char *)code)[15] != 1) || ((const char *)code)[4] == 0)
        return 200;
    return *module = make(MODULE, current()), 0;
}

Result cuModuleUnload(Thing *module) { return owned(module, MODULE)->alive = 0; }

Result cuModuleGetFunction(Thing **function, Thing *module, const char *name) {
    owned(module, MODULE);
    demand(name[0] != 0, "a kernel without a name");
    return *function = make(FUNCTION, current()), 0;
}

/* Of its shared memory 1 KiB is fixed. */
Result cuFuncGetAttribute(int *value, int attribute, Thing *function) {
    demand(attribute == 1 && owned(function, FUNCTION) != NULL, "an attribute that nobody should need");
    return *value = 1 << 10, 0;
}

Result cuFuncSetAttribute(Thing *function, int attribute, int value) {
    demand(attribute == 8, "an attribute that nobody should need");
    demand(value >= 0 && value <= (226 << 10), "more shared memory than there is");
    return owned(function, FUNCTION)->shared_memory = value, 0;
}

Result cuMemAlloc_v2(Address *address, size_t bytes) {
    Thing *thing = make(MEMORY, current());
    demand(bytes > 0, "no bytes are allocated");
    const char *most = getenv("LIBCUDA_MEMORY");
    if (most && bytes > (size_t)atol(most))
        return thing->alive = 0, 2;
    thing->memory = calloc(1, bytes);
    thing->bytes = bytes;
    return *address = (Address)thing->memory, 0;
}

Result cuMemFree_v2(Address address) {
    Thing *thing = memory_at(address, 0);
    demand(address == (Address)thing->memory, "an address that nobody allocated is freed");
    return thing->alive = 0; /* the bytes stay, so that no other memory gets the address */
}

/* Of the host, zero at first. */
Result cuMemHostAlloc(void **memory, size_t bytes, unsigned flags) {
    Thing *thing = make(PINNED, current());
    demand(bytes > 0 && flags == 0, "no plain pinned memory");
    return *memory = thing->memory = calloc(1, bytes), 0;
}

Result cuMemFreeHost(void *memory) {
    Thing *thing, *context = current();
    pthread_mutex_lock(&guard);
    for (thing = things; thing != NULL && !(thing->kind == PINNED && thing->alive && thing->memory == memory); thing = thing->next)
        ;
    pthread_mutex_unlock(&guard);
    demand(thing != NULL && thing->context == context, "pinned memory that nobody allocated here is freed");
    return thing->alive = 0;
}

Result cuMemcpyHtoDAsync_v2(Address to, const void *from, size_t bytes, Thing *stream) {
    owned(stream, STREAM);
    if (bytes > 0) {
        memory_at(to, bytes);
        memcpy((void *)to, from, bytes);
        struct Copy *upload = calloc(1, sizeof *upload);
        *upload = (struct Copy){memcpy(malloc(bytes), from, bytes), from, bytes, stream->uploads};
        stream->uploads = upload;
        demand(n_uploading < 64, "copies to the card that nobody waits for");
        if (n_uploading == 0 || uploading[n_uploading - 1] != stream)
            uploading[n_uploading++] = stream;
    }
    return 0;
}

Result cuMemcpyDtoHAsync_v2(void *to, Address from, size_t bytes, Thing *stream) {
    struct Copy *copy = calloc(1, sizeof *copy);
    owned(stream, STREAM);
    if (bytes > 0)
        memory_at(from, bytes);
    *copy = (struct Copy){to, (const char *)from, bytes, stream->copies};
    stream->copies = copy;
    return 0;
}

Result cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, Thing *function, int threads, size_t shared) {
    demand(owned(function, FUNCTION)->shared_memory >= (int)shared && threads > 0, "more shared memory than was allowed");
    return *blocks = 1, 0;
}

Result cuLaunchKernel(Thing *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared,
                      Thing *stream, void **parameters, void **extra) {
    demand(owned(function, FUNCTION)->shared_memory >= (int)shared, "more shared memory than was allowed");
    demand(owned(stream, STREAM) != NULL && parameters != NULL && extra == NULL, "a launch with a struct of arguments");
    for (int i = 0; i < n_uploading; i++)
        demand(uploading[i] == stream, "a kernel does not wait for what its thread copies to the card in another stream");
    demand(gx > 0 && gy == 1 && gz == 1 && bx > 0 && bx <= 1024 && by == 1 && bz == 1, "a launch that the card refuses");
    say("kernel in ", current() == primary[current()->device] ? "the primary context" : "another context", current()->device);
    return 0;
}

Result cuLaunchCooperativeKernel(Thing *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                                 unsigned shared, Thing *stream, void **parameters) {
    return cuLaunchKernel(function, gx, gy, gz, bx, by, bz, shared, stream, parameters, NULL);
}
